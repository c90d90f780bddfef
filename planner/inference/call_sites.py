"""The places in modeling source that call a child module, with the names of the arguments and of the result there.

Recognised are direct calls, calls of a loop variable over a module list (through slices, `enumerate`, `zip`), calls by
index, and checkpointed calls that take the module as an argument. Results are followed through assignments, tuple
unpacking, walrus expressions and keywords of a returned object.
"""

import ast
import inspect
import linecache
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import nn


@dataclass(frozen=True, slots=True)
class Site:
    """One call: the names of its positional and keyword arguments, and the names that its result is bound to.

    None stands for an expression that is not a name.
    """

    positional: tuple[str | None, ...]
    keywords: tuple[str, ...]
    outputs: tuple[str, ...]


def call_sites(owner: type[nn.Module], child: str) -> tuple[Site, ...]:
    """Every call of `self.<child>`, or of a member of it, in the methods of a class; `forward` first."""
    found: list[Site] = []
    for function in _methods(owner):
        if child not in _attributes(function):
            continue
        parents = {below: above for above in ast.walk(function) for below in ast.iter_child_nodes(above)}
        aliases = _aliases(function, child)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and (arguments := _arguments_to(node, child, aliases)) is not None:
                names = tuple(_result_names(node, parents, function))
                keywords = tuple(k.arg for k in node.keywords if k.arg is not None)
                local = _local_names(function)
                found.append(Site(tuple(_name_of(argument, local) for argument in arguments), keywords, names))
    return tuple(found)


NOT_MODELS = ("torch.", "transformers.modeling_utils", "transformers.generation", "transformers.utils")
"""Modules with base classes of models that never call a model's own children."""


def _methods(owner: type[nn.Module]) -> tuple[ast.FunctionDef, ...]:
    found: dict[str, ast.FunctionDef] = {}
    for kind in owner.__mro__:
        if kind in (nn.Module, object) or kind.__module__.startswith(NOT_MODELS):
            continue
        for node in _class_body(kind):
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, node)
    return tuple(sorted(found.values(), key=lambda function: function.name != "forward"))


def _class_body(kind: type) -> list[ast.stmt]:
    """The statements of a class body; empty if its source is not available."""
    try:
        file = inspect.getsourcefile(kind)
    except TypeError:  # the class was not defined in a file
        return []
    if file is None:
        return []
    linecache.checkcache(file)
    return _classes("".join(linecache.getlines(file))).get(kind.__qualname__, [])


@lru_cache(maxsize=64)
def _classes(source: str) -> Mapping[str, list[ast.stmt]]:
    """The bodies of a file's classes by qualified name. A file is parsed once, not once per class, because it may be long."""
    found: dict[str, list[ast.stmt]] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(prefix + node.name, node.body)
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                visit(node.body, f"{prefix}{node.name}.<locals>.")
            elif isinstance(node, ast.If | ast.Try | ast.With):
                visit(node.body, prefix)

    try:
        visit(ast.parse(source).body, "")
    except SyntaxError:
        return {}
    return found


@lru_cache(maxsize=4096)
def _attributes(function: ast.FunctionDef) -> frozenset[str]:
    """The names of all attributes that a method reads."""
    return frozenset(node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute))


def _is_child(node: ast.AST, child: str) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr == child
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def _mentions(node: ast.AST, child: str) -> bool:
    return any(_is_child(inner, child) for inner in ast.walk(node))


def _aliases(function: ast.FunctionDef, child: str) -> set[str]:
    """Local names of the child or of its members: loop variables, and names that they are assigned to."""
    names: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.For | ast.comprehension) and _mentions(node.iter, child):
            names |= set(_loop_names(node.target, node.iter, child))
        elif isinstance(node, ast.Assign) and _is_member(node.value, child):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _is_member(node: ast.AST, child: str) -> bool:
    return _is_child(node, child) or (isinstance(node, ast.Subscript) and _is_child(node.value, child))


def _loop_names(target: ast.expr, iterated: ast.expr, child: str) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    if not isinstance(target, ast.Tuple) or not isinstance(iterated, ast.Call):
        return
    called = iterated.func.id if isinstance(iterated.func, ast.Name) else ""
    sources = [iterated.args[0]] * 2 if called == "enumerate" else iterated.args
    for position, (part, source) in enumerate(zip(target.elts, sources, strict=False)):
        if called == "enumerate" and position == 0:
            continue
        if _mentions(source, child):
            yield from _loop_names(part, source, child)


def _arguments_to(node: ast.Call, child: str, aliases: set[str]) -> list[ast.expr] | None:
    """The positional arguments that the child receives in this call; None if it is no call of the child."""

    def is_it(part: ast.expr) -> bool:
        if isinstance(part, ast.Attribute) and part.attr in ("__call__", "forward"):
            part = part.value
        return _is_member(part, child) or (isinstance(part, ast.Name) and part.id in aliases)

    if is_it(node.func):
        return node.args
    if (
        node.args
        and is_it(node.args[0])
        and not (isinstance(node.func, ast.Name) and node.func.id in ("enumerate", "zip", "len", "range"))
    ):
        return node.args[1:]
    return None


@lru_cache(maxsize=4096)
def _local_names(function: ast.FunctionDef) -> frozenset[str]:
    """The names that a method binds: its arguments, and names that it assigns."""
    bound = (node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return frozenset((*bound, *(node.arg for node in ast.walk(function) if isinstance(node, ast.arg)))) - {"self"}


def _name_of(node: ast.expr, local: frozenset[str]) -> str | None:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Subscript(value=inner) | ast.Starred(value=inner):
            return _name_of(inner, local)
        case ast.NamedExpr(target=target):
            return _name_of(target, local)
        case ast.Attribute(attr=name):
            return name
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name))) if name in local:  # `x.to(dtype)`, not `F.gelu(x)`
            return name
        case _:
            return None


def _result_names(node: ast.AST, parents: dict[ast.AST, ast.AST], function: ast.FunctionDef) -> Iterator[str]:
    """The names that the value of an expression is bound to, found by walking up the syntax tree."""
    while node in parents:
        above = parents[node]
        match above:
            case ast.NamedExpr(target=ast.Name(id=name)):
                yield name
                return
            case ast.Assign(targets=[target, *_]) | ast.AnnAssign(target=target) | ast.AugAssign(target=target):
                yield from _unpacked(target, function)
                return
            case ast.keyword(arg=str(name)) if _is_returned(above, parents):
                yield name
                return
            case ast.Return():
                return
        node = above


def _is_returned(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    call = parents.get(node)
    return isinstance(call, ast.Call) and isinstance(parents.get(call), ast.Return)


def _unpacked(target: ast.expr, function: ast.FunctionDef) -> Iterator[str]:
    """The names in the target of an assignment. If the first item of a name is assigned to another name later, that name is
    given.
    """
    if isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            if isinstance(part, ast.Name) and part.id != "_":
                yield part.id
    elif isinstance(target, ast.Name):
        yield _first_member(target.id, function) or target.id


def _first_member(name: str, function: ast.FunctionDef) -> str | None:
    for node in ast.walk(function):
        match node:
            case ast.Assign(
                targets=[ast.Name(id=bound)],
                value=ast.Subscript(value=ast.Name(id=source), slice=ast.Constant(value=0)),
            ) if source == name:
                return bound
    return None
