"""The one gate, for hand, hook and CI: `python -m tests.gate [step ...]`; no step named means all of `STEPS`.

Steps run in order and stop at the first that fails; `BESIDE` run meanwhile, and are reported last.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATH = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
"""PYTHONPATH of a process that imports this checkout's package and its tests."""
# Two processes; a file stays in one of them, so that its models, groups of ranks and sites are made once. In the order given.
_PYTEST = ("pytest", "-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
STEPS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy",),
    "imports": ("importlinter.cli", "lint"),
    # The longest files first: the last ones are short, so that neither process waits for the other.
    "tests": (
        *_PYTEST,
        "tests/ranks/test_seen.py",
        "tests/golden",
        "tests/arch",
        "tests/unit/test_suggest.py",
        "tests/unit/test_write.py",
        "tests/truth",
        "tests/unit",
    ),
}
MORE = {"ranks": (*_PYTEST, "tests/ranks")}
"""Steps to name: ten minutes of groups of processes."""
BESIDE = ("types", "imports")
"""Steps of one process that takes minutes: they run while others do."""


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
    wanted = steps or list(STEPS)
    beside = [step for step in wanted if step in BESIDE and len(wanted) > 1]
    with tempfile.TemporaryDirectory() as made, _started(beside, folder := Path(made)) as started:
        for step in (one for one in wanted if one not in started):
            print(f"== {step}", flush=True)
            if code := _reported(step, subprocess.run(command(step), cwd=ROOT, check=False).returncode):
                return code
        for step, process in started.items():
            code = process.wait()
            print(f"== {step}\n{(folder / step).read_text()}", end="", flush=True)
            if _reported(step, code):
                return code
    return 0


@contextmanager
def _started(steps: list[str], folder: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes that write to a file of their step's name, and are ended with the block."""
    started = {}
    for step in steps:
        with (folder / step).open("wb") as file:
            started[step] = subprocess.Popen(command(step), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def _reported(step: str, code: int) -> int:
    """The exit code of a step, after a line that says so if it failed."""
    if code:
        print(f"== {step} failed", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
