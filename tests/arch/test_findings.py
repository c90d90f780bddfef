"""A finding's message is built where the finding is explained: in its own file of `verify.findings`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FINDINGS = ROOT / "verify" / "findings"
CODE = re.compile(r"(PL|TP|PP|BE|DY)\d{3}")


def test_findings_are_built_in_their_own_files() -> None:
    files = [path for folder in ("planner", "verify", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]
    elsewhere = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in files
        if path.parent != FINDINGS
        for call in _calls(path)
        if _code_of(call) is not None
    ]
    assert not elsewhere, f"built outside verify/findings: {', '.join(elsewhere)}"


def test_a_file_builds_its_own_finding_alone() -> None:
    for path in sorted(FINDINGS.glob("*.py")):
        codes = {code for call in _calls(path) if (code := _code_of(call)) is not None}
        assert codes <= {path.stem.upper()}, path.name


def _calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
            yield node


def _code_of(call: ast.Call) -> str | None:
    """The literal code that a finding is constructed with."""
    given = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "code")]
    for value in given:
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and CODE.fullmatch(value.value):
            return value.value
    return None
