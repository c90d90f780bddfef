"""A rank that dies, hangs or raises alone: said first, in seconds, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.api import confirm
from planner.frontend.load import Loaded, build, carried_plan, load
from planner.ir.findings import Severity, Verdict
from planner.ir.plan import Plan
from tests.dist import faulty

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parents[2]


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


def test_a_killed_rank_is_named_and_nothing_stays() -> None:
    began = time.monotonic()
    result = confirm(Loaded("killed", faulty.KilledConfig(), faulty.Killed), llama_plan(), tp=2, timeout=60)
    assert time.monotonic() - began < 40
    assert result.verdict is Verdict.NOT_PROVED
    assert result.findings[0].code == "DY504"
    assert result.findings[0].message == "rank 1 was killed by SIGKILL before it answered"
    assert not left_over()


def test_a_rank_that_never_answers_runs_out_of_time() -> None:
    result = confirm(Loaded("stuck", faulty.StuckConfig(), faulty.Stuck), llama_plan(), tp=2, timeout=15)
    assert result.findings[0].code == "DY505"
    assert result.findings[0].severity is Severity.UNDECIDED
    assert not left_over()


def test_a_rank_that_raises_alone_is_the_first_cause() -> None:
    result = confirm(Loaded("lonely", faulty.LonelyConfig(), faulty.Lonely), llama_plan(), tp=2, timeout=60)
    assert result.verdict is Verdict.REFUTED
    assert result.findings[0].message.startswith("rank 1 failed in forward: RuntimeError: rank 1 has had enough")
    assert not left_over()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_when_the_command_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "from launch.api import confirm; from tests.dist import faulty; from tests.dist.test_faults import llama_plan;"
        "from planner.frontend.load import Loaded;"
        "confirm(Loaded('stuck', faulty.StuckConfig(), faulty.Stuck), llama_plan(), tp=2, timeout=100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_until(lambda: list(tmp_path.glob("shardproof-*/logs/*/*/1")) != [], seconds=60)
    process.send_signal(number)
    process.wait(30)
    wait_until(lambda: not left_over(), seconds=10)


def test_the_ranks_of_a_surrounding_job_are_used(tmp_path: Path) -> None:
    script = tmp_path / "inside.py"
    script.write_text(
        "from launch.api import confirm\n"
        "from tests.dist.test_faults import llama_plan\n"
        "result = confirm('llama', llama_plan(), tp=2, timeout=60)\n"
        "print('verdict:', result.verdict, flush=True)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("verdict: confirmed") == 2


def llama_plan() -> Plan:
    """The plan that Llama carries; the scripts above import it too."""
    loaded = load("llama")
    return carried_plan(loaded, build(loaded))


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
