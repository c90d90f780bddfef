"""Code of Transformers 4, with the edits that Transformers 5 asks for and that need no judgement.

What each edit answers is a row of `planner.loading.version_breaks`. Code that no edit fits is left as it is.
"""

# ruff: noqa: N802
# libcst calls methods by the names of its classes.

import ast
from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst
from libcst import matchers as m

_GENERATION = frozenset("max_length min_length num_beams do_sample temperature top_k top_p repetition_penalty".split())
"""What Transformers 5 keeps in the generation config alone."""
_GONE_FROM = {
    "OutputRecorder": "transformers.utils.output_capturing",
}
"""Names that lie in another module now."""
_NO_MORE = frozenset({"is_torch_fx_available"})
_OF_SUPER = m.Attribute(value=m.Call(func=m.Name("super")))
_ROPE_OF_CONFIG = m.Attribute(value=m.DoesNotMatch(m.Name("self")), attr=m.Name("rope_scaling"))
"""Not a config's own field, which its constructor reads before the settings are in their new form."""


@dataclass(frozen=True, slots=True)
class Ported:
    """The new text of a file, and what was edited: the line in the old text, and a few words."""

    text: str
    edits: tuple[tuple[int, str], ...]


def ported(text: str) -> Ported:
    """The text of a Python file as Transformers 5 takes it.

    Raises:
        SyntaxError: it is no Python code.
    """
    ast.parse(text)  # libcst's own parser ends the process where code is nested too deep
    tree = cst.metadata.MetadataWrapper(cst.parse_module(text))
    edits = _Edits()
    made = tree.visit(edits)
    return Ported(made.code, tuple(sorted(set(edits.made))))


@dataclass(frozen=True, slots=True)
class _Class:
    """A class whose body is being read."""

    is_model: bool
    embeddings: str
    """What `get_input_embeddings` returns, without `self.`."""


class _Edits(cst.CSTTransformer):
    METADATA_DEPENDENCIES = (cst.metadata.PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, str]] = []
        self.classes: list[_Class] = []
        self.functions: list[cst.FunctionDef] = []
        self.guarded = 0
        """How many `if` and `try` lie around: an import there is not unasked."""
        self.elsewhere: list[cst.ImportFrom] = []
        """Imports that follow the line that is being read."""

    def _edit(self, node: cst.CSTNode, words: str) -> None:
        self.made.append((self.get_metadata(cst.metadata.PositionProvider, node).start.line, words))

    # Classes and functions

    def visit_ClassDef(self, node: cst.ClassDef) -> None:
        model = any(_code(base.value).endswith("PreTrainedModel") for base in node.bases)
        self.classes.append(_Class(model, _input_embeddings(node)))

    def leave_ClassDef(self, _: cst.ClassDef, updated: cst.ClassDef) -> cst.ClassDef:
        self.classes.pop()
        return updated

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        self.functions.append(node)

    def leave_FunctionDef(self, original: cst.FunctionDef, updated: cst.FunctionDef) -> cst.FunctionDef:
        self.functions.pop()
        in_class = bool(self.classes) and not self.functions
        name = original.name.value
        if in_class and name == "tie_weights" and not original.params.star_kwarg:
            self._edit(original, "tie_weights takes what Transformers 5 gives it")
            return _with_keywords(updated)
        if not (in_class and name == "__init__" and self.classes[-1].is_model):
            return updated
        if _calls(original, "post_init") or m.findall(original, m.Return()):
            return updated
        self._edit(original, "__init__ ends with self.post_init()")
        return _ended_with(updated, "self.post_init()")

    # Imports

    def leave_ImportFrom(
        self, original: cst.ImportFrom, updated: cst.ImportFrom
    ) -> cst.ImportFrom | cst.RemovalSentinel:
        if isinstance(updated.names, cst.ImportStar):
            return updated
        module = _code(original.module) if original.module else ""
        if module.partition(".")[0] != "transformers":
            return updated
        rest = []
        for alias in updated.names:
            name = alias.evaluated_name
            if name in _NO_MORE:
                self._edit(original, f"{name} is not imported")
            elif _GONE_FROM.get(name, module) != module:
                self._edit(original, f"{name} lies elsewhere")
                self.elsewhere.append(_import(_GONE_FROM[name], alias))
            else:
                rest.append(alias)
        if len(rest) == len(updated.names):
            return updated
        return updated.with_changes(names=_last_without_comma(rest)) if rest else cst.RemoveFromParent()

    def visit_If(self, _: cst.If) -> None:
        self.guarded += 1

    def visit_Try(self, _: cst.Try) -> None:
        self.guarded += 1

    def leave_Try(self, _: cst.Try, updated: cst.Try) -> cst.Try:
        self.guarded -= 1
        return updated

    def leave_If(
        self, original: cst.If, updated: cst.If
    ) -> cst.If | cst.RemovalSentinel | cst.FlattenSentinel[cst.BaseStatement]:
        self.guarded -= 1
        if not m.matches(original.test, m.Call(func=m.Name("is_torch_fx_available"))):
            return updated
        self._edit(original, "no branch for torch.fx")
        match updated.orelse:
            case cst.Else(body=cst.IndentedBlock(body=body)):
                return cst.FlattenSentinel(body)
            case cst.If() as other:
                return other
        return cst.RemoveFromParent()

    def leave_SimpleStatementLine(
        self, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement]:
        if self.elsewhere:
            lines = [cst.SimpleStatementLine([one]) for one in self.elsewhere]
            self.elsewhere = []
            return cst.FlattenSentinel([updated, *lines] if updated.body else lines)
        if self.guarded or self.functions or len(original.body) != 1 or not _imports_kernels(original.body[0]):
            return updated
        names = [alias.evaluated_alias or alias.evaluated_name for alias in original.body[0].names]  # type: ignore[attr-defined]
        self._edit(original, "flash_attn is imported where it is installed")
        nothing = [cst.parse_statement(f"{name.partition('.')[0]} = None") for name in names]
        return cst.Try(
            leading_lines=updated.leading_lines,
            body=cst.IndentedBlock([updated.with_changes(leading_lines=())]),
            handlers=[
                cst.ExceptHandler(type=cst.Name("ImportError"), body=cst.IndentedBlock(nothing)),
            ],
        )

    # Expressions

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.BaseExpression:
        name = _called(original)
        if name.startswith("create_") and "mask" in name:
            return self._mask(original, updated)
        if name in _NO_MORE and isinstance(original.func, cst.Name):
            return cst.Name("False")
        if not isinstance(original.func, cst.Attribute):
            return updated
        match name, len(original.args):
            case "get_head_mask", count if count >= 2:
                self._edit(original, "no head masks")
                return cst.parse_expression(f"[None] * {_factor(updated.args[1].value)}")
            case "from_legacy_cache", _ if self.classes and self.classes[-1].is_model and self.functions:
                self._edit(original, "a new cache instead of tuples")
                return cst.parse_expression("DynamicCache(config=self.config)")
            case "to_legacy_cache", 0:
                self._edit(original, "a cache is returned as it is")
                assert isinstance(updated.func, cst.Attribute)
                return updated.func.value
            case "get_usable_length", count if count:
                self._edit(original, "get_seq_length")
                return _renamed(updated, "get_seq_length").with_changes(args=_last_arg_without_comma(updated.args[1:]))
            case "get_max_cache_shape", _:
                self._edit(original, "get_max_length")
                return _renamed(updated, "get_max_length")
            case "tie_weights", 0 if self._gets_keywords() and m.matches(original.func, _OF_SUPER):
                return updated.with_changes(args=[cst.Arg(cst.Name("kwargs"), star="**")])
        return updated

    def _gets_keywords(self) -> bool:
        """Whether the function that is being read is one that is given `**kwargs`."""
        inner = self.functions[-1] if self.functions else None
        return inner is not None and inner.name.value == "tie_weights" and not inner.params.star_kwarg

    def _mask(self, original: cst.Call, updated: cst.Call) -> cst.Call:
        keywords = {arg.keyword.value for arg in original.args if arg.keyword}
        if not keywords & {"input_embeds", "cache_position"}:
            return updated
        self._edit(original, "the mask takes inputs_embeds, and no cache_position")
        kept = [arg for arg in updated.args if not (arg.keyword and arg.keyword.value == "cache_position")]
        args = [
            arg.with_changes(keyword=cst.Name("inputs_embeds"))
            if arg.keyword and arg.keyword.value == "input_embeds"
            else arg
            for arg in kept
        ]
        return updated.with_changes(args=args)

    def leave_Subscript(self, original: cst.Subscript, updated: cst.Subscript) -> cst.BaseExpression:
        if m.matches(
            original,
            m.Subscript(
                value=_ROPE_OF_CONFIG,
                slice=[
                    m.SubscriptElement(m.Index(m.SimpleString(value=m.MatchIfTrue(lambda text: text[1:-1] == "type"))))
                ],
            ),
        ):
            self._edit(original, "the rotary type lies in rope_parameters")
            assert isinstance(updated.value, cst.Attribute)
            return cst.parse_expression(f'{_code(updated.value.value)}.rope_parameters["rope_type"]')
        return updated

    def leave_Comparison(self, original: cst.Comparison, updated: cst.Comparison) -> cst.BaseExpression:
        if m.matches(
            original,
            m.Comparison(
                left=_ROPE_OF_CONFIG,
                comparisons=[m.ComparisonTarget(operator=m.Is() | m.IsNot(), comparator=m.Name("None"))],
            ),
        ):
            self._edit(original, "no rotary scaling is the type `default`")
            assert isinstance(updated.left, cst.Attribute)
            sign = "==" if isinstance(updated.comparisons[0].operator, cst.Is) else "!="
            return cst.parse_expression(
                f'{_code(updated.left.value)}.rope_parameters["rope_type"] {sign} "default"'
            ).with_changes(lpar=updated.lpar, rpar=updated.rpar)
        return updated

    def leave_Attribute(self, original: cst.Attribute, updated: cst.Attribute) -> cst.Attribute:
        name = original.attr.value
        if name == "use_return_dict":
            self._edit(original, "return_dict")
            return updated.with_changes(attr=cst.Name("return_dict"))
        of_config = m.matches(original.value, m.Attribute(m.Name("self"), m.Name("config")))
        if name in _GENERATION and of_config and self.classes and self.classes[-1].is_model:
            self._edit(original, f"{name} lies in generation_config")
            return updated.with_changes(value=cst.parse_expression("self.generation_config"))
        return updated

    def leave_Assign(self, original: cst.Assign, updated: cst.Assign) -> cst.Assign:
        if (
            self.functions
            or not self.classes
            or not m.matches(original, m.Assign(targets=[m.AssignTarget(m.Name("_tied_weights_keys"))], value=m.List()))
        ):
            return updated
        names = [_text(one.value) for one in original.value.elements]  # type: ignore[attr-defined]
        source = self.classes[-1].embeddings
        if not source or not all(name.endswith(".weight") for name in names):
            return updated
        self._edit(original, "_tied_weights_keys names the source of each weight")
        entries = ", ".join(f'"{name}": "{source}.weight"' for name in names)
        return updated.with_changes(value=cst.parse_expression(f"{{{entries}}}"))


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


def _text(node: cst.CSTNode) -> str:
    return str(node.evaluated_value) if isinstance(node, cst.SimpleString) else ""


def _called(node: cst.Call) -> str:
    match node.func:
        case cst.Name(value=name) | cst.Attribute(attr=cst.Name(value=name)):
            return name
    return ""


def _factor(node: cst.BaseExpression) -> str:
    """The code of a factor of a product."""
    return (
        f"({_code(node)})" if isinstance(node, cst.BinaryOperation | cst.IfExp | cst.BooleanOperation) else _code(node)
    )


def _renamed(call: cst.Call, name: str) -> cst.Call:
    assert isinstance(call.func, cst.Attribute)
    return call.with_changes(func=call.func.with_changes(attr=cst.Name(name)))


def _last_arg_without_comma(args: Sequence[cst.Arg]) -> list[cst.Arg]:
    return [*args[:-1], *(arg.with_changes(comma=cst.MaybeSentinel.DEFAULT) for arg in args[-1:])]


def _last_without_comma(names: list[cst.ImportAlias]) -> list[cst.ImportAlias]:
    return [*names[:-1], names[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)]


def _import(module: str, alias: cst.ImportAlias) -> cst.ImportFrom:
    made = cst.parse_expression(module)
    assert isinstance(made, cst.Attribute)
    return cst.ImportFrom(module=made, names=[alias.with_changes(comma=cst.MaybeSentinel.DEFAULT)])


def _imports_kernels(node: cst.BaseSmallStatement) -> bool:
    """Whether a statement imports flash_attn."""
    if isinstance(node, cst.ImportFrom):
        return (
            isinstance(node.names, Sequence)
            and node.module is not None
            and _code(node.module).split(".")[0] == "flash_attn"
        )
    return isinstance(node, cst.Import) and any(one.evaluated_name.split(".")[0] == "flash_attn" for one in node.names)


def _input_embeddings(node: cst.ClassDef) -> str:
    """What a class's `get_input_embeddings` returns, without `self.`; empty where it has none."""
    for method in node.body.body:
        if isinstance(method, cst.FunctionDef) and method.name.value == "get_input_embeddings":
            for returned in m.findall(method, m.Return(value=m.Attribute())):
                assert isinstance(returned, cst.Return) and returned.value is not None
                code = _code(returned.value)
                if code.startswith("self."):
                    return code.removeprefix("self.")
    return ""


def _calls(node: cst.FunctionDef, name: str) -> bool:
    return bool(m.findall(node, m.Call(func=m.Attribute(attr=m.Name(name)))))


def _with_keywords(function: cst.FunctionDef) -> cst.FunctionDef:
    return function.with_changes(params=function.params.with_changes(star_kwarg=cst.Param(cst.Name("kwargs"))))


def _ended_with(function: cst.FunctionDef, line: str) -> cst.FunctionDef:
    body = function.body
    if isinstance(body, cst.IndentedBlock):
        return function.with_changes(body=body.with_changes(body=[*body.body, cst.parse_statement(line)]))
    assert isinstance(body, cst.SimpleStatementSuite)  # `def f(): one; two`
    made = cst.parse_statement(line)
    return function.with_changes(body=cst.IndentedBlock([cst.SimpleStatementLine(body.body), made]))
