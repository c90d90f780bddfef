"""The one gate, for hand, hook and CI: `python -m tests.gate [step ...]`; no step named means all of `STEPS`.

Steps run in order and stop at the first that fails.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATH = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
"""PYTHONPATH of a process that imports this checkout's package and its tests."""
# Two processes; a file stays in one of them, so that its models, groups of ranks and sites are made once.
_PYTEST = ("pytest", "-q", "-n", "2", "--dist", "loadfile")
STEPS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy",),
    "imports": ("importlinter.cli", "lint"),
    "tests": (
        *_PYTEST,
        "tests/arch",
        "tests/golden",
        "tests/truth",
        "tests/unit",
        "tests/ranks/test_seen.py",
    ),
}
MORE = {"ranks": (*_PYTEST, "tests/ranks")}
"""Steps to name: ten minutes of groups of processes."""


def command(step: str) -> list[str]:
    """The command of a step, by this interpreter's own tools."""
    module, *arguments = (STEPS | MORE)[step]
    if module == "importlinter.cli":
        return [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    return [sys.executable, "-m", module, *arguments]


def main(steps: list[str]) -> int:
    if unknown := [step for step in steps if step not in STEPS | MORE]:
        print(f"There is no step {unknown[0]!r}; the steps are {', '.join(STEPS | MORE)}.", file=sys.stderr)
        return 2
    for step in steps or STEPS:
        print(f"== {step}", flush=True)
        if code := subprocess.run(command(step), cwd=ROOT, check=False).returncode:
            print(f"== {step} failed", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
