"""The README runs: every command in a console block exits with 0 and prints what is shown under it."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest

from tests.forked import forked, run_command, run_tests
from tests.readme import README, console_sessions, matches

EXAMPLES = README.parent / "examples"


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


@pytest.mark.parametrize(("command", "shown"), console_sessions(README.read_text()), ids=lambda text: text[:60])
def test_a_command_of_the_readme_prints_what_is_shown(command: str, shown: str) -> None:
    name, *arguments = command.split()
    assert name == "plan", command
    ended = run_command(*arguments, here=README.parent)
    assert ended.code == 0, ended
    assert not shown or matches(shown, ended.out), ended.out


@pytest.mark.parametrize("file", ["test_my_model.py", "test_with_the_plugin.py"])
def test_an_example_of_a_test_passes(file: str, tmp_path: Path) -> None:
    """In a folder of its own: this project's options of pytest are not its user's."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    ended = run_tests(file, here=tmp_path / "examples")
    assert ended.code == 0, ended


def test_the_example_of_a_config_module_runs() -> None:
    def script() -> int:
        sys.path.insert(0, str(EXAMPLES))
        runpy.run_path("config_module.py", run_name="__main__")
        return 0

    ended = forked(script, here=EXAMPLES)
    assert ended.code == 0, ended
