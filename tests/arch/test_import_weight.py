"""Import weight: help, explanations and reading a report must answer in well under a second, so torch stays out."""

import resource
import subprocess
import sys
from importlib import import_module

import pytest

MODULES = [
    *(
        "planner",
        "shardproof.planner.ir.graph",
        "shardproof.planner.ir.plan",
        "shardproof.planner.ir.styles",
        "shardproof.planner.propagation.rules.registry",
    ),
    *(
        "verify",
        "shardproof.verify.report.report",
        "launch",
        "shardproof.launch.cli",
        "shardproof.launch.pytest_plugin",
    ),
]
HEAVY = ("torch", "transformers")
REPORT = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"


def heavy_after(code: str) -> str:
    """The heavy packages that a fresh interpreter has loaded after running `code`."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{REPORT}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("module", MODULES)
def test_importing_does_not_load_torch(module: str) -> None:
    assert heavy_after(f"import {module}") == "[]"


def run_plan(arguments: list[str]) -> str:
    """Code that runs the command in the interpreter that executes it."""
    return f"import sys; sys.argv = ['plan', *{arguments!r}]\nfrom shardproof.launch.cli import main\n{CALL}"


CALL = """
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


@pytest.mark.parametrize("arguments", [["--help"], ["verify", "--help"], ["explain", "TP203"]])
def test_a_light_command_does_not_load_torch(arguments: list[str]) -> None:
    assert heavy_after(run_plan(arguments)) == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "TP203"]])
def test_a_light_command_answers_at_once(arguments: list[str]) -> None:
    before = _children()
    subprocess.run([sys.executable, "-c", run_plan(arguments)], capture_output=True, check=True)
    # It takes a quarter of a second; torch alone takes three. Of the processor: a busy machine is no fault.
    assert _children() - before < 2


def _children() -> float:
    """Seconds of the processor that child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("package", "name"), [("planner", "suggest"), ("verify", "prove"), ("verify", "check"), ("launch", "confirm")]
)
def test_what_a_package_exports_is_not_hidden_by_its_modules(package: str, name: str) -> None:
    """The name is the function, first, and again after its module was imported; and the package lists it."""
    exported = getattr(import_module(package), name)
    assert callable(exported)
    assert name in import_module(package).__all__
    assert getattr(import_module(package), name) is exported
