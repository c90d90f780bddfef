"""Work in a process that is forked from the one of the tests, which has loaded torch and Transformers already.

For what a process prints and exits with. How a process starts (its path, its imports, its signals) is tested in a fresh one.
"""

import logging
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

_PATIENCE = 280.0
"""Seconds before the process is killed."""
_ADDED_BY_PYTEST = (
    "PYTEST_CURRENT_TEST",
    "PYTEST_XDIST_WORKER",
    "PYTEST_XDIST_WORKER_COUNT",
    "PYTEST_XDIST_TESTRUNUID",
)


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


def forked(work: Callable[[], int], *, here: Path | None = None, environment: Mapping[str, str] | None = None) -> Ended:
    """What some work that gives an exit code printed.

    Args:
        work: called in the process.
        here: its current folder; by default the one of the tests.
        environment: added to the variables of the tests.
    """
    import shardproof.planner.loading.load  # noqa: F401  # loaded once, for all processes that are forked from here

    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        child = multiprocessing.get_context("fork").Process(
            target=_child, args=(work, out, err, here or Path(), environment or {})
        )
        child.start()
        child.join(_PATIENCE)
        if child.is_alive():
            child.kill()
            child.join()
        assert child.exitcode is not None
        return Ended(child.exitcode, out.read_text(), err.read_text())


def run_command(*words: str, here: Path | None = None, environment: Mapping[str, str] | None = None) -> Ended:
    """The command `plan` with these arguments, as its console script runs it."""

    def script() -> int:
        from shardproof.launch.cli import main

        sys.argv = ["plan", *words]
        main()
        return 0

    return forked(script, here=here, environment=environment)


def run_tests(*files: str, here: Path) -> Ended:
    """pytest with the plugin, on files of a folder, as its user has it."""
    # An installed plugin would be there twice.
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    options = ["-q", "-p", "no:cacheprovider", "-p", "shardproof.launch.pytest_plugin", "-W", "ignore"]
    return forked(lambda: int(pytest.main([*options, *files])), here=here, environment=alone)


def _child(work: Callable[[], int], out: Path, err: Path, here: Path, environment: Mapping[str, str]) -> None:
    warnings.simplefilter("ignore")
    for name in _ADDED_BY_PYTEST:
        os.environ.pop(name, None)
    os.environ.update(environment)
    os.chdir(here)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    for logger in map(logging.getLogger, logging.root.manager.loggerDict):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.stream = sys.stderr  # `setStream` would flush the old one, which a test may have closed
    try:
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
