"""Modeling source as syntax trees, with the line numbers of its file."""

import ast
import inspect
import textwrap

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
