"""Read the source of methods: which calls run a child module, and do they pass `**kwargs` on?"""

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType

from shardproof.planner.ir.findings import Source
from shardproof.planner.loading.source_lines import relative
from shardproof.verify.clients.contract.source import function_tree

_LIBRARIES = ("transformers.", "torch.", "functools", "contextlib", "accelerate.")
"""Wrappers from these packages pass their arguments on, so they are not read."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function with its syntax tree and file."""

    made: FunctionType
    tree: ast.FunctionDef
    file: str

    @property
    def name(self) -> str:
        return self.made.__qualname__

    @property
    def keywords(self) -> str | None:
        """The name of its `**kwargs`."""
        return self.tree.args.kwarg.arg if self.tree.args.kwarg else None

    def source(self, node: ast.AST | None = None) -> Source:
        return Source(relative(self.file), getattr(node, "lineno", self.tree.lineno))


def read(function: object) -> Function | None:
    """A function with its syntax tree; None where it has no source."""
    if not isinstance(function, FunctionType):
        return None
    tree = function_tree(function)
    return Function(function, tree, function.__code__.co_filename) if tree is not None else None


def layers_of(function: Callable[..., object]) -> Iterator[Function]:
    """Every wrapper of a decorated function, outermost first, that is the model's own; then the function itself."""
    current: object = function
    for _ in range(12):
        inner = getattr(current, "__wrapped__", None) or _closed_over(current)
        found = _own_source(current)
        if found is not None and (inner is None or not found.made.__module__.startswith(_LIBRARIES)):
            yield found
        if inner is None:
            return
        current = inner


def _own_source(function: object) -> Function | None:
    """The tree of exactly this function, not of what it wraps."""
    if not isinstance(function, FunctionType):
        return None
    bare = FunctionType(function.__code__, function.__globals__, function.__name__, None, function.__closure__)
    bare.__qualname__, bare.__module__ = function.__qualname__, function.__module__
    return read(bare)


def _closed_over(function: object) -> object | None:
    """The function that a wrapper without `functools.wraps` calls, from its closure."""
    if not isinstance(function, FunctionType) or not function.__closure__:
        return None
    tree = function_tree(function)
    called = (
        {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        if tree
        else set()
    )
    for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True):
        try:
            content = cell.cell_contents
        except ValueError:
            continue
        if name in called and inspect.isfunction(content):
            return content
    return None


def names_in(node: ast.AST) -> set[str]:
    """Every plain name that an expression uses."""
    return {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}


def reaches_self(node: ast.AST, attribute: str) -> bool:
    """Whether an expression contains `self.<attribute>` or `getattr(self, "<attribute>")`."""
    for found in ast.walk(node):
        if isinstance(found, ast.Attribute) and found.attr == attribute and isinstance(found.value, ast.Name):
            return found.value.id == "self"
        if isinstance(found, ast.Constant) and found.value == attribute and _inside_getattr(node, found):
            return True
    return False


def _inside_getattr(node: ast.AST, constant: ast.Constant) -> bool:
    return any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "getattr"
        and constant in call.args
        for call in ast.walk(node)
    )


def aliases(tree: ast.FunctionDef, attribute: str, given: frozenset[str] = frozenset()) -> set[str]:
    """Local names of a child module or of a member of it: assigned from it, or loop variables over it."""
    found = set(given)
    for _ in range(3):
        for node in ast.walk(tree):
            for target, value in _bindings(node):
                if reaches_self(value, attribute) or (names_in(value) & found and _is_selection(value)):
                    found |= _bound(target, value, attribute, found)
    return found


def _bindings(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    if (isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call)) or (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and names_in(node.value.func) & {"getattr", "partial"}
    ):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, ast.For | ast.comprehension):
        yield node.target, node.iter


def _bound(target: ast.expr, value: ast.expr, attribute: str, known: set[str]) -> set[str]:
    """Names of an assignment target that stand for the child; in `i, layer in enumerate(...)` and `zip`, the matching one."""
    if isinstance(target, ast.Name):
        return {target.id}
    if not isinstance(target, ast.Tuple):
        return set()
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        offset = 1 if value.func.id == "enumerate" else 0
        for position, argument in enumerate(value.args):
            mine = reaches_self(argument, attribute) or bool(names_in(argument) & known)
            if mine and position + offset < len(target.elts):
                return _bound(target.elts[position + offset], argument, attribute, known)
    return set()


def _is_selection(value: ast.expr) -> bool:
    return isinstance(value, ast.Name | ast.Subscript | ast.Attribute) or (
        isinstance(value, ast.Call) and bool(names_in(value.func) & {"enumerate", "zip", "list", "reversed", "getattr"})
    )


def calls_to(tree: ast.FunctionDef, attribute: str, known: set[str]) -> list[ast.Call]:
    """Calls that run a child: the child, a member by index, its `forward`, or a function that runs it (checkpointing,
    `partial`).
    """
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = [*node.args, *(k.value for k in node.keywords if k.arg is not None)]
        if _is_child(node.func, attribute, known) or any(
            _is_child_argument(a, attribute, known) for a in given if _runs_argument(node)
        ):
            found.append(node)
    return found


def _is_child(func: ast.expr, attribute: str, known: set[str]) -> bool:
    match func:
        case ast.Name(id=name):
            return name in known
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name == attribute
        case ast.Attribute(value=inner, attr="forward" | "__call__"):
            return _is_child(inner, attribute, known)
        case ast.Subscript(value=inner):
            return _is_child(inner, attribute, known)
        case ast.Call(func=ast.Name(id="getattr")):
            return reaches_self(func, attribute)
        case _:
            return False


def _runs_argument(node: ast.Call) -> bool:
    """Whether a call runs a module that is its argument (checkpointing, `partial`)."""
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    return "checkpoint" in name or name in ("partial", "run", "apply", "map")


def _is_child_argument(argument: ast.expr, attribute: str, known: set[str]) -> bool:
    return _is_child(argument, attribute, known)


def passes_keywords(call: ast.Call, carriers: set[str]) -> bool:
    """Whether a call passes `**` of one of the names that hold the caller's `**kwargs`."""
    return any(k.arg is None and names_in(k.value) & carriers for k in call.keywords)


def carriers(tree: ast.FunctionDef, keywords: str) -> set[str]:
    """Names that hold the function's `**kwargs`, or a mapping made of them."""
    found = {keywords}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _carried(node.value, found):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.AnnAssign) and node.value is not None and _carried(node.value, found):
            found |= names_in(node.target)
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="update"), args=given):
                found |= {name} if any(names_in(argument) & found for argument in given) else set()
    return found


def _carried(value: ast.expr, known: set[str]) -> bool:
    match value:
        case ast.Name(id=name):
            return name in known
        case ast.Dict(keys=keys, values=values):
            return any(key is None and names_in(held) & known for key, held in zip(keys, values, strict=True))
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _carried(left, known) or _carried(right, known)
        case ast.Call(func=func):
            copied = isinstance(func, ast.Attribute) and func.attr == "copy" and bool(names_in(func.value) & known)
            made = isinstance(func, ast.Name) and func.id == "dict"
            merged = any(k.arg is None and names_in(k.value) & known for k in value.keywords)
            return copied or (made and (merged or any(names_in(a) & known for a in value.args)))
        case ast.DictComp(generators=generators):
            return any(names_in(generator.iter) & known for generator in generators)
        case _:
            return False


def emptied(tree: ast.FunctionDef, keywords: str) -> ast.AST | None:
    """The assignment in the function's body that replaces `**kwargs` by something else, if there is one."""
    for node in tree.body:
        bound = isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == keywords for t in node.targets)
        if bound and isinstance(node, ast.Assign) and keywords not in names_in(node.value):
            return node
    return None
