"""A rank that dies, hangs or raises alone: said first, in seconds, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.launch.ranks.elastic import _last_words
from shardproof.planner.ir.findings import Severity, Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.twins.twin import twin
from shardproof.verify.stages.case import Case
from tests.gate import PATH, ROOT
from tests.ranks.faulty import Fault, faulty

pytestmark = pytest.mark.timeout(400)


def left_over() -> set[str]:
    """Our launchers that run, and our directories that are there."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    mine = tempfile.gettempdir()
    processes = {line for line in listed.splitlines() if f"elastic.py {mine}" in line}
    return processes | {str(path) for path in Path(mine).glob("shardproof-*")}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files where no other test's are, so that what is left over can only be ours."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@dataclass(frozen=True, slots=True)
class Expected:
    """What is said first, and how it counts: code, severity, words of the message."""

    code: str
    severity: Severity
    words: str


EXPECTED = {
    Fault.RAISES: Expected("DY504", Severity.ERROR, "rank 1 failed in forward: RuntimeError: this rank has had enough"),
    Fault.IS_KILLED: Expected("DY504", Severity.UNDECIDED, "rank 1 was killed by SIGKILL before it answered"),
    Fault.STOPS: Expected("DY505", Severity.UNDECIDED, "no answer from rank 1 in"),
    Fault.HITS_A_LIMIT: Expected("DY504", Severity.UNDECIDED, "rank 1 failed in forward: RuntimeError"),
    Fault.CALLS_ONE_MORE: Expected("", Severity.UNDECIDED, ""),  # gloo waits, or ends the rank: both decide nothing
}


def test_a_rank_that_ends_without_an_answer_has_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run" / "attempt_0" / "1" / "stderr.log"
    log.parent.mkdir(parents=True)
    assert _last_words(tmp_path, 1) == ""
    log.write_text("Traceback (most recent call last):\n  File ...\nRuntimeError: no GPU for a forked process\n\n")
    assert _last_words(tmp_path, 1) == "RuntimeError: no GPU for a forked process"
    log.write_text("a warning\nFatal Python error: Segmentation fault\n\n  File ...\nExtension modules: torch._C\n")
    assert _last_words(tmp_path, 1) == "Fatal Python error: Segmentation fault"


def test_the_first_cause_is_said_and_the_next_case_is_not_spoilt() -> None:
    """One warm group, a right case after every fault."""
    plan, right = llama_plan(), load("llama")
    cases = []
    for fault in EXPECTED:
        cases += [Case(twin(faulty(fault), tp=2), plan, tp=2), Case(twin(right, tp=2), plan, tp=2)]
    results = confirm_cases(tuple(cases), timeout=25)
    for expected, result, after in zip(EXPECTED.values(), results[::2], results[1::2], strict=True):
        first = result.findings[0]
        assert first.code.startswith(expected.code)
        assert first.severity is expected.severity
        assert expected.words in first.message
        assert after.verdict is Verdict.CONFIRMED
    assert not left_over()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_when_the_command_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "from shardproof.launch.ranks.confirm import confirm; from tests.ranks.faulty import Fault, faulty;"
        "from tests.ranks.test_faults import llama_plan;"
        "confirm(faulty(Fault.LOOPS), llama_plan(), tp=2, timeout=100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": PATH})
    wait_until(lambda: list(tmp_path.glob("shardproof-*/logs/*/*/1")) != [], seconds=60)
    process.send_signal(number)
    process.wait(30)
    wait_until(lambda: not left_over(), seconds=10)


def llama_plan() -> Plan:
    """The plan that Llama carries; the scripts above import it too."""
    loaded = load("llama")
    return carried_plan(loaded, build(loaded))


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
