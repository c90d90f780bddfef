"""The README runs: every command in a console block exits with 0 and prints what is shown under it."""

import os
import subprocess
import sys

import pytest

from tests.gate import PATH
from tests.readme import README, console_sessions, matches

EXAMPLES = README.parent / "examples"
# Plugins by name, so that ours is not found twice where the package is installed.
PYTEST = ("-m", "pytest", "-q", "-p", "pytest_timeout", "-p", "no:cacheprovider")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("proved in 1.2 s", "proved in 14 s", True),
        ("error 1.2e-15", "error 3.4e-16", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...", "a", False),
        ("proved", "refuted", False),
        ("tp 2", "tp 3", False),
    ],
)
def test_what_counts_as_the_same_output(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


def run_here(command: str) -> str:
    """The standard output of a `plan ...` command, by this interpreter, at the project's root."""
    words = command.split()
    assert words[0] == "plan", command
    run = [sys.executable, "-c", "from shardproof.launch.cli import main; main()", *words[1:]]
    done = subprocess.run(run, cwd=README.parent, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("command", "shown"), console_sessions(README.read_text()), ids=lambda text: text[:60])
def test_a_command_of_the_readme_prints_what_is_shown(command: str, shown: str) -> None:
    printed = run_here(command)
    assert not shown or matches(shown, printed), printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["config_module.py"],
        [*PYTEST, "test_my_model.py"],
        [*PYTEST, "-p", "shardproof.launch.pytest_plugin", "test_with_the_plugin.py"],
    ],
    ids=["config_module", "test_my_model", "test_with_the_plugin"],
)
def test_an_example_runs(arguments: list[str]) -> None:
    run = [sys.executable, *arguments]
    path = {**os.environ, "PYTHONPATH": PATH, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(run, cwd=EXAMPLES, env=path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
