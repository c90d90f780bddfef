"""The shape of the code: each class name once, small folders, no function with too many branches."""

import ast
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.gate import MORE, ROOT, STEPS

FOLDERS = ("planner", "verify", "launch")
MOST_FILES = 13
"""In one folder: a dozen, and `__init__.py`."""
MOST_BRANCHES = 20
CATALOGUES = ("findings", "rules")
"""Folders of one file a finding or a rule."""
_BRANCHES = (ast.If, ast.For, ast.While, ast.IfExp, ast.comprehension, ast.match_case, ast.ExceptHandler)


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file.relative_to(ROOT), ast.parse(file.read_text())


def branches(function: ast.AST) -> int:
    """Places where the function may go one way or another; of `a and b and c` two."""
    return sum(
        len(node.values) - 1 if isinstance(node, ast.BoolOp) else isinstance(node, _BRANCHES)
        for node in ast.walk(function)
    )


def test_a_class_name_is_used_once() -> None:
    names = Counter(node.name for _, module in modules() for node in ast.walk(module) if isinstance(node, ast.ClassDef))
    assert {name: count for name, count in names.items() if count > 1} == {}


def test_a_folder_holds_a_dozen_files() -> None:
    files = Counter(file.parent for file, _ in modules() if file.parent.name not in CATALOGUES)
    assert {str(folder): count for folder, count in files.items() if count > MOST_FILES} == {}


def test_no_function_has_too_many_branches() -> None:
    functions = {
        f"{file}:{node.name}": branches(node)
        for file, module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: count for name, count in functions.items() if count > MOST_BRANCHES} == {}


def test_every_folder_of_tests_is_collected_and_run_by_a_step(pytestconfig: pytest.Config) -> None:
    """Pytest passes over folders of some names (`dist`, `build`) without a word; so do linters."""
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "tests").rglob("test_*.py")}
    passed_over = [str(pattern) for pattern in pytestconfig.getini("norecursedirs")]
    assert [folder for folder in folders if any(fnmatch(folder.name, pattern) for pattern in passed_over)] == []
    named = {Path(argument) for step in (STEPS | MORE).values() for argument in step}
    assert folders - named == set()
