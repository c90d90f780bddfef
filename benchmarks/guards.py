"""`python -m benchmarks guards [--only TEXT] [--out FILE]`: is the removal of every guard of the proof noticed by a test?

`benchmarks.guard_sites` finds the guards. Each is taken out in a process of its own, in memory only, and the fast tests of the
proof run until one fails. A guard is *noticed* if one does.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from types import ModuleType

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.guard_sites import ROOT, Guard, guarded_files

TESTS = ("tests/unit/test_guards.py", "tests/unit/test_guard_models.py", "tests/unit/test_check_plan.py")
RELATION = ("planner/judge.py", "planner/propagation/", "planner/tracing/")
"""Files whose guards the first of the tests is for; for the others the order is turned round, to fail sooner."""
NOTICED, MISSED = "noticed", "not noticed"


@dataclass(frozen=True, slots=True)
class GuardResult:
    """A guard and what the tests say without it."""

    guard: Guard
    outcome: str
    seconds: float


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from other code."""

    def __init__(self, name: str, path: Path, code: str) -> None:
        self.name, self.path, self.code = name, path, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=str(self.path))

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.code, str(self.path), "exec"), module.__dict__)


def main(only: str, path: Path) -> int:
    """Take out each guard whose description contains `only`; print the table, write JSON; 1 if a removal is not noticed."""
    import torch  # once, for all the processes that are forked
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    console, results = Console(), list[GuardResult]()
    found = [(file, at, one) for file in guarded_files() for at, one in enumerate(file.guards) if only in str(one)]
    if found and _without(found[0][2], found[0][0].path, found[0][0].path.read_text()) != MISSED:
        console.print("the tests fail with every guard in place")
        return 1
    for file, at, guard in track(found, description="guards", console=Console(stderr=True)):
        began = monotonic()
        outcome = _without(guard, file.path, file.without(at))
        results.append(GuardResult(guard, outcome, round(monotonic() - began, 1)))
        if outcome != NOTICED:
            console.print(outcome, str(guard), soft_wrap=True)
        path.write_text(json.dumps([asdict(one) for one in results], indent=2))
    console.print(_table(results))
    return int(any(one.outcome != NOTICED for one in results))


def _without(guard: Guard, path: Path, code: str) -> str:
    """What the tests say without a guard, in a process that is forked for it."""
    child = os.fork()
    if child == 0:
        os._exit(_tested(guard, path, code))
    _, status = os.waitpid(child, 0)
    return {0: MISSED, 1: NOTICED}.get(os.waitstatus_to_exitcode(status), "the tests did not run")


def _tested(guard: Guard, path: Path, code: str) -> int:
    """The exit code of pytest, with a module without one of its guards."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("shardproof", "tests"):
            del sys.modules[name]
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, _Mutated(guard.module, path, code))
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    os.chdir(ROOT)
    pytest = importlib.import_module("pytest")
    # Modules of the parent process are imported already, of which pytest would warn.
    options = [
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--assert=plain",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    ordered = TESTS if guard.file.startswith(RELATION) and "expert" not in guard.file else TESTS[1:] + TESTS[:1]
    return int(pytest.main([*options, *ordered]))


def _table(results: list[GuardResult]) -> Table:
    table = Table("file", "guards", NOTICED, MISSED)
    for file in dict.fromkeys(one.guard.file for one in results):
        counts = Counter(one.outcome for one in results if one.guard.file == file)
        table.add_row(file, str(counts.total()), str(counts[NOTICED]), str(counts.total() - counts[NOTICED]))
    counts = Counter(one.outcome for one in results)
    table.add_row("all", str(counts.total()), str(counts[NOTICED]), str(counts.total() - counts[NOTICED]))
    return table
