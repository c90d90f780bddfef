"""Small changes of modeling code as unified diffs. No file is written: a diff is a suggestion to the model's author."""

import ast
import difflib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from torch import nn

from shardproof.planner.ir.findings import Source
from shardproof.planner.loading.source_lines import relative

Change: TypeAlias = tuple[ast.expr, str]
"""A node of a syntax tree, and the text that replaces it."""

_VIEWS = ("view", "reshape")


def unfix_views(views: Mapping[Source, int]) -> str:
    """The diff that replaces one fixed size in each view by -1. `views` maps source lines to the dim, counted from the end.

    Empty if a line is not found or has no such size.
    """
    changes: dict[str, list[Change]] = {}
    for source, dim in views.items():
        tree = _tree(source.file)
        found = [change for call in _views_at(tree, source.line) for change in _opened(call, dim)] if tree else []
        if not found:
            return ""
        changes.setdefault(source.file, []).extend(found)
    return "".join(_diff(file, edits) for file, edits in changes.items())


def _views_at(tree: ast.AST, line: int) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _VIEWS
            and node.func.end_lineno is not None
            and node.lineno <= line <= (node.end_lineno or node.lineno)
        ):
            yield node


def _opened(call: ast.Call, dim: int) -> Iterator[Change]:
    sizes = call.args[0].elts if len(call.args) == 1 and isinstance(call.args[0], ast.Tuple | ast.List) else call.args
    if len(sizes) < -dim or any(isinstance(size, ast.Starred) for size in sizes[dim:]) or _is_open(sizes[dim]):
        return
    for position, size in enumerate(sizes):
        if _is_open(size):
            receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
            if not isinstance(receiver, ast.Name) or any(isinstance(s, ast.Starred) for s in sizes[:position]):
                return
            yield size, f"{receiver.id}.shape[{position}]"
    yield sizes[dim], "-1"


def _is_open(size: ast.expr) -> bool:
    return isinstance(size, ast.UnaryOp) and ast.unparse(size) == "-1"


def as_linear(owner: nn.Module, child: str) -> str:
    """The diff that replaces a child with a transposed weight by an `nn.Linear`; empty if its construction is not simple.

    The sizes are the constructor's arguments with the names of the attributes that hold these sizes.
    """
    module = owner.get_submodule(child)
    signature = list(inspect.signature(type(module).__init__).parameters)[1:]
    names = _size_names(owner, type(module), signature)
    file = inspect.getsourcefile(type(owner))
    tree = _tree(relative(file)) if file else None
    if names is None or tree is None:
        return ""
    bias = "" if any(tensor.dim() == 1 for tensor in module.parameters(recurse=False)) else ", bias=False"
    changes: list[Change] = []
    for call in _constructions(tree, type(owner).__name__, child):
        given = dict(zip(signature, map(ast.unparse, call.args), strict=False))
        if not all(name in given for name in names):
            return ""
        changes.append((call, f"nn.Linear({given[names[0]]}, {given[names[1]]}{bias})"))
    return _diff(relative(file or ""), changes)


def _size_names(owner: nn.Module, kind: type, signature: list[str]) -> tuple[str, str] | None:
    """The arguments for the input and the output size, identified with a module of this class that is not square."""
    for module in owner.modules():
        shapes = [tuple(t.shape) for t in module.parameters(recurse=False) if t.dim() == 2]
        if type(module) is kind and len(shapes) == 1 and shapes[0][0] != shapes[0][1]:
            held = {getattr(module, name, None): name for name in signature}
            if shapes[0][0] in held and shapes[0][1] in held:
                return held[shapes[0][0]], held[shapes[0][1]]
    return None


def _constructions(tree: ast.AST, owner: str, child: str) -> Iterator[ast.Call]:
    """Every call that constructs the child, in any branch of its owner's class."""
    for kind in ast.walk(tree):
        if isinstance(kind, ast.ClassDef) and kind.name == owner:
            for node in ast.walk(kind):
                match node:
                    case ast.Assign(targets=[ast.Attribute(attr=name)], value=ast.Call() as call) if name == child:
                        yield call


def _tree(file: str) -> ast.AST | None:
    text = _text(file)
    return ast.parse(text) if text is not None else None


def _text(file: str) -> str | None:
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if isinstance(name, str) and name.endswith(file.rpartition("/")[2]) and relative(name) == file:
            return Path(name).read_text()
    return None


def _diff(file: str, changes: Iterable[Change]) -> str:
    before = (_text(file) or "").splitlines(keepends=True)
    after = list(before)
    for node, text in sorted(changes, key=lambda change: (change[0].lineno, change[0].col_offset), reverse=True):
        if node.end_lineno != node.lineno or node.end_col_offset is None:
            return ""
        line = after[node.lineno - 1].encode()
        after[node.lineno - 1] = (line[: node.col_offset] + text.encode() + line[node.end_col_offset :]).decode()
    return "".join(difflib.unified_diff(before, after, f"a/{file}", f"b/{file}", n=1))
