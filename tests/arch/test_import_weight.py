"""Import weight: help, explanations and reading a report must answer in well under a second, so torch stays out."""

import inspect
import resource
import subprocess
import sys
from importlib import import_module

import pytest

import shardproof

MODULES = [
    "shardproof",
    "shardproof.planner.ir.graph",
    "shardproof.planner.propagation.rules.registry",
    "shardproof.verify.report.report",
    "shardproof.launch.cli",
    "shardproof.launch.pytest_plugin",
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


PUBLIC = [name for name in shardproof.__all__ if name[0].islower()]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_function_is_not_hidden_by_a_module_of_its_name(name: str) -> None:
    """`shardproof.suggest` is the function, also after every module of the package was imported."""
    for package in ("planner.inference.suggest", "planner.loading.load", "verify.proof.prove", "verify.clients.check"):
        import_module(f"shardproof.{package}")
    assert inspect.isfunction(getattr(shardproof, name))
    assert getattr(shardproof, name).__module__ == "shardproof"


def test_every_public_class_is_found() -> None:
    assert all(inspect.isclass(getattr(shardproof, name)) for name in shardproof.__all__ if name not in PUBLIC)
