"""Modeling source as syntax trees, with the line numbers of its file."""

import ast
import inspect
import linecache
import textwrap
from functools import cache
from types import CodeType

from shardproof.planner.ir.findings import Source
from shardproof.planner.loading.source_lines import relative

_FORWARDS: dict[type, ast.FunctionDef | None] = {}


def forward_tree(kind: type) -> ast.FunctionDef | None:
    """The `forward` of a class, below its decorators; None where its source cannot be read."""
    if kind not in _FORWARDS:
        _FORWARDS[kind] = function_tree(getattr(kind, "forward", None))
    return _FORWARDS[kind]


def function_tree(function: object) -> ast.FunctionDef | None:
    """A function's own definition, its lines numbered as in its file."""
    try:
        inner = inspect.unwrap(function)  # type: ignore[arg-type]  # anything may be asked for; what is no function raises
        lines, first = inspect.getsourcelines(inner)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, ValueError, SyntaxError, AttributeError):
        return None
    ast.increment_lineno(tree, first - 1)
    found = tree.body[0] if tree.body else None
    return found if isinstance(found, ast.FunctionDef) else None


def source_of(kind: type, node: ast.AST | None = None) -> Source | None:
    """The line of a node in the file of a class, or the class's own line."""
    try:
        file = inspect.getsourcefile(kind)
        line = getattr(node, "lineno", None) or inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return None
    return Source(relative(file), line) if file is not None else None


def code_tree(code: CodeType) -> ast.FunctionDef | None:
    """The definition of a running function, from its file; None for a lambda, or where there is no source."""
    tree = _file_tree(code.co_filename)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    return None


@cache
def _file_tree(name: str) -> ast.Module | None:
    try:
        return ast.parse("".join(linecache.getlines(name)))
    except (SyntaxError, ValueError):
        return None
