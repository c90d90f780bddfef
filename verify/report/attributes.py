"""Set plan attributes in the source of a class and keep every other character. Text to text, by libcst.

Entries that stay keep their text and comments; entries that differ are replaced, old ones removed, new ones added at the end. The
entries of a pipeline plan are written in the order given, since their order is the order of the stages.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import libcst as cst

from shardproof.planner.ir.readable_text import python_string

Names: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
Mapped: TypeAlias = Mapping[str, str] | Mapping[str, Names]


class NoClassError(LookupError):
    """The source defines no such class."""


def with_attributes(source: bytes, class_name: str, attributes: Mapping[str, Mapped], *, fields: bool = False) -> bytes:
    """The source with the class's attributes set to these mappings; the same bytes where they have these values already.

    `class_name` is qualified (`Outer.Inner`). With `fields` the class is a dataclass: an annotation would make a field of an
    attribute, whose default cannot be a dict, so only `ClassVar` stays. Raises `NoClassError` where the source has no such
    class, and `libcst.ParserSyntaxError` where it is not valid Python.
    """
    module = cst.parse_module(source)
    found = _find(module.body, class_name.split("."))
    if found is None:
        raise NoClassError(class_name)
    written = _written(found, attributes, module.default_indent, fields=fields)
    if written is found:
        return source
    replaced = module.deep_replace(found, written)
    assert isinstance(replaced, cst.Module)
    return replaced.bytes


def _find(body: Iterable[cst.BaseStatement | cst.BaseSmallStatement], names: Sequence[str]) -> cst.ClassDef | None:
    """The last definition of that name, as at run time, also under an `if` or a `try`."""
    found = None
    for statement in body:
        if isinstance(statement, cst.ClassDef) and statement.name.value == names[0]:
            found = statement if len(names) == 1 else _find(statement.body.body, names[1:]) or found
        elif isinstance(statement, cst.If | cst.Try | cst.With):
            found = _find(statement.body.body, names) or found
            if isinstance(statement, cst.If) and statement.orelse is not None:
                found = _find((statement.orelse,) if isinstance(statement.orelse, cst.If) else (), names) or found
    return found


def _written(found: cst.ClassDef, attributes: Mapping[str, Mapped], indent: str, *, fields: bool) -> cst.ClassDef:
    suite = _block(found.body)
    inner = suite.indent or indent
    body = list(suite.body)
    changed = False
    for name, wanted in attributes.items():
        at = _assigned_at(body, name)
        old = body[at] if at is not None else None
        if old is not None and _same(_literal(_value(old)), wanted):
            continue
        changed = True
        if at is not None and isinstance(old, cst.SimpleStatementLine):
            body[at] = _assigned(old, _value(old), wanted, inner, fields=fields)
        else:
            at, line = _placed(body, _assignment(name, wanted, inner))
            body[at:] = [line, *_set_off(body[at:])]
    if not changed:
        return found
    body = [statement for statement in body if not _is_filler(statement)]
    return found.with_changes(body=suite.with_changes(body=body))


def _block(suite: cst.BaseSuite) -> cst.IndentedBlock:
    """A class body of several lines, also where it stood behind the colon."""
    if isinstance(suite, cst.IndentedBlock):
        return suite
    assert isinstance(suite, cst.SimpleStatementSuite)
    line = cst.SimpleStatementLine(suite.body, trailing_whitespace=suite.trailing_whitespace)
    return cst.IndentedBlock([line])


def _is_filler(statement: cst.BaseStatement) -> bool:
    """`pass` or `...` on a line of its own, which a body with attributes does not need."""
    if not (isinstance(statement, cst.SimpleStatementLine) and len(statement.body) == 1):
        return False
    only = statement.body[0]
    return isinstance(only, cst.Pass) or (isinstance(only, cst.Expr) and isinstance(only.value, cst.Ellipsis))


def _assigned_at(body: Sequence[cst.BaseStatement], name: str) -> int | None:
    """The last statement that sets the attribute, as at run time."""
    return next((at for at in reversed(range(len(body))) if _target(body[at]) == name), None)


def _target(statement: cst.BaseStatement) -> str | None:
    if not (isinstance(statement, cst.SimpleStatementLine) and len(statement.body) == 1):
        return None
    match statement.body[0]:
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Name(name))]):
            return name
        case cst.AnnAssign(target=cst.Name(name)):
            return name
        case _:
            return None


def _bound(statement: cst.BaseStatement) -> list[str]:
    """All names that a line of assignments sets: one line may hold several, and one assignment several targets."""
    found: list[str] = []
    for small in statement.body if isinstance(statement, cst.SimpleStatementLine) else ():
        match small:
            case cst.Assign(targets=targets):
                found += [one.target.value for one in targets if isinstance(one.target, cst.Name)]
            case cst.AnnAssign(target=cst.Name(name)):
                found.append(name)
    return found


def _value(statement: cst.BaseStatement) -> cst.BaseExpression | None:
    assert isinstance(statement, cst.SimpleStatementLine)
    small = statement.body[0]
    assert isinstance(small, cst.Assign | cst.AnnAssign)
    return small.value


def _literal(value: cst.CSTNode | None) -> object:
    """The value of a literal; None for anything that would have to be run."""
    if value is None:
        return None
    try:
        return ast.literal_eval(cst.Module([]).code_for_node(value))
    except (ValueError, SyntaxError, MemoryError):
        return None


def _same(have: object, wanted: Mapped) -> bool:
    """Equal entries; in a pipeline plan in the same order too."""
    if not isinstance(have, dict):
        return False
    ordered = any(not isinstance(value, str) for value in wanted.values())
    entries = {key: _frozen(value) for key, value in have.items()}
    return entries == dict(wanted) and (not ordered or list(entries) == list(wanted))


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _assigned(
    statement: cst.SimpleStatementLine, value: cst.BaseExpression | None, wanted: Mapped, indent: str, *, fields: bool
) -> cst.SimpleStatementLine:
    small = statement.body[0]
    assert isinstance(small, cst.Assign | cst.AnnAssign)
    new = _merged(value, wanted) if isinstance(value, cst.Dict) and _plain(value) else None
    literal = new or _dict(wanted, indent)
    changed = small.with_changes(value=literal)
    if isinstance(changed, cst.AnnAssign) and fields and not _is_class_variable(changed.annotation):
        changed = cst.Assign([cst.AssignTarget(changed.target)], literal)
    elif isinstance(changed, cst.AnnAssign) and not isinstance(changed.equal, cst.AssignEqual):
        changed = changed.with_changes(equal=cst.AssignEqual())
    return statement.with_changes(body=[changed])


def _is_class_variable(annotation: cst.Annotation) -> bool:
    return "ClassVar" in cst.Module([]).code_for_node(annotation.annotation)


def _plain(value: cst.Dict) -> bool:
    """A literal over several lines whose entries can be kept one by one."""
    keys = [_literal(element.key) for element in value.elements if isinstance(element, cst.DictElement)]
    own_lines = isinstance(value.lbrace.whitespace_after, cst.ParenthesizedWhitespace)
    return own_lines and bool(keys) and len(keys) == len(value.elements) and len(set(keys)) == len(keys)


def _merged(value: cst.Dict, wanted: Mapped) -> cst.Dict | None:
    """The literal with its entries kept, replaced, removed and added; None where nothing of it stays."""
    have = {str(_literal(element.key)): element for element in value.elements if isinstance(element, cst.DictElement)}
    kept = [key for key in have if key in wanted]
    if not kept:
        return None
    ordered = any(not isinstance(entry, str) for entry in wanted.values())
    order = list(wanted) if ordered else [*kept, *(key for key in wanted if key not in have)]
    between = _separator(value)
    last = list(have)[-1]
    closing = have[last].comma
    elements = []
    for key in order:
        element = have.get(key) or cst.DictElement(_string(key), _expression(wanted[key]))
        if _frozen(_literal(element.value)) != wanted[key]:
            element = element.with_changes(value=_expression(wanted[key]))
        elements.append(element)
    commas = [
        element.comma if key in have and key != last and isinstance(element.comma, cst.Comma) else between
        for key, element in zip(order, elements, strict=True)
    ]
    end = closing if isinstance(closing, cst.Comma) and order[-1] == last else _last_comma(closing, value)
    commas[-1] = end
    new = [element.with_changes(comma=comma) for element, comma in zip(elements, commas, strict=True)]
    return value.with_changes(elements=new)


def _separator(value: cst.Dict) -> cst.Comma:
    """A comma and the line break with the indent that the entries stand at."""
    after = value.lbrace.whitespace_after
    assert isinstance(after, cst.ParenthesizedWhitespace)
    return cst.Comma(
        whitespace_after=cst.ParenthesizedWhitespace(
            first_line=cst.TrailingWhitespace(), indent=after.indent, last_line=after.last_line
        )
    )


def _last_comma(closing: cst.Comma | cst.MaybeSentinel, value: cst.Dict) -> cst.Comma:
    """What stands before the closing brace: the old last comma's line break, without its comment."""
    if isinstance(closing, cst.Comma) and isinstance(closing.whitespace_after, cst.ParenthesizedWhitespace):
        after = closing.whitespace_after
        return cst.Comma(
            whitespace_after=cst.ParenthesizedWhitespace(
                first_line=cst.TrailingWhitespace(), indent=after.indent, last_line=after.last_line
            )
        )
    before = value.rbrace.whitespace_before
    return cst.Comma() if isinstance(before, cst.ParenthesizedWhitespace) else _separator(value)


def _placed(body: Sequence[cst.BaseStatement], line: cst.SimpleStatementLine) -> tuple[int, cst.SimpleStatementLine]:
    """Where: after the other plans, else after the first plain assignments of the class, else after its docstring."""
    plans = [at for at, statement in enumerate(body) if any(name.endswith("_plan") for name in _bound(statement))]
    if plans:
        return plans[-1] + 1, line
    first = 1 if body and _is_docstring(body[0]) else 0
    at = first
    while at < len(body) and _is_assignment(body[at]):
        at += 1
    return at, line.with_changes(leading_lines=[cst.EmptyLine(indent=False)]) if first and at == first else line


def _set_off(rest: Sequence[cst.BaseStatement]) -> Sequence[cst.BaseStatement]:
    """What follows an attribute: a method or a class stands after an empty line."""
    match rest:
        case [cst.FunctionDef() | cst.ClassDef() as first, *others] if not first.leading_lines:
            return [first.with_changes(leading_lines=[cst.EmptyLine(indent=False)]), *others]
        case _:
            return rest


def _is_docstring(statement: cst.BaseStatement) -> bool:
    match statement:
        case cst.SimpleStatementLine(body=[cst.Expr(value=cst.SimpleString() | cst.ConcatenatedString())]):
            return True
        case _:
            return False


def _is_assignment(statement: cst.BaseStatement) -> bool:
    match statement:
        case cst.SimpleStatementLine(body=[cst.Assign()]):
            return True
        case _:
            return False


def _assignment(name: str, wanted: Mapped, indent: str) -> cst.SimpleStatementLine:
    target = cst.AssignTarget(cst.Name(name))
    return cst.SimpleStatementLine([cst.Assign([target], _dict(wanted, indent))])


def _dict(wanted: Mapped, indent: str) -> cst.Dict:
    """A literal with one entry a line; the class body's own indent comes with the statement."""
    lines = [f"{indent}{_code(key)}: {_code(value)}," for key, value in wanted.items()]
    made = cst.parse_expression("{\n" + "\n".join(lines) + "\n}" if lines else "{}")
    assert isinstance(made, cst.Dict)
    return _reindented(made) if lines else made


def _reindented(made: cst.Dict) -> cst.Dict:
    """Line breaks follow the block that the literal will stand in."""

    class Indenter(cst.CSTTransformer):
        def leave_ParenthesizedWhitespace(  # noqa: N802  # libcst's name
            self,
            original_node: cst.ParenthesizedWhitespace,  # noqa: ARG002  # libcst's signature
            updated_node: cst.ParenthesizedWhitespace,
        ) -> cst.ParenthesizedWhitespace:
            return updated_node.with_changes(indent=True)

    indented = made.visit(Indenter())
    assert isinstance(indented, cst.Dict)
    return indented


def _string(text: str) -> cst.BaseExpression:
    return cst.parse_expression(_code(text))


def _expression(value: str | Names) -> cst.BaseExpression:
    return cst.parse_expression(_code(value))


def _code(value: str | Names) -> str:
    """With double quotes, as formatters write it; the names of a stage as lists, as Transformers writes them."""
    if isinstance(value, str):
        return python_string(value)
    inputs, outputs = ("[" + ", ".join(map(_code, names)) + "]" for names in value)
    return f"({inputs}, {outputs})"
