"""Starting ranks on this machine, and leaving nothing behind: no process, no port, no file, also after Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launch.request import Request, write_request
from verify.dynamic.outcome import Outcome, outcome_from

_SCRIPT = Path(__file__).with_name("elastic.py")
_ROOT = Path(__file__).parents[1]
_PATIENCE = 5.0
"""Seconds between asking the launcher to end its ranks and ending them all."""


@dataclass(frozen=True, slots=True)
class Death:
    """A rank that ended without an answer: its exit code, negative for a signal."""

    rank: int
    exitcode: int

    def __str__(self) -> str:
        if self.exitcode >= 0:
            return f"rank {self.rank} exited with code {self.exitcode}"
        return f"rank {self.rank} was killed by {signal.Signals(-self.exitcode).name}"


@dataclass(frozen=True, slots=True)
class Run:
    """What came back: per case the outcome of each rank that answered, the first death, and whether time ran out.

    `complaint` is the last line that the launcher wrote, for the case that no rank ever started.
    """

    outcomes: tuple[dict[int, Outcome], ...]
    death: Death | None = None
    timed_out: bool = False
    complaint: str = ""


def run_cases(request: Request, *, limit: float) -> Run:
    """Start the ranks, wait at most `limit` seconds, and read what they answered. Nothing outlives this call."""
    with _directory() as directory:
        write_request(directory, request)
        log = directory / "launcher.log"
        with log.open("wb") as written, _started(directory, written.fileno()) as process:
            timed_out = False
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                timed_out = True
        return _read(directory, request, timed_out=timed_out)


@contextmanager
def _directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="shardproof-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _started(directory: Path, log: int) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher in a session of its own; on the way out it and all its ranks are ended.

    Its standard input stays open as long as this process lives: that is how it notices our own death.
    """
    with _terminable():
        process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), str(directory)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=_environment(directory),
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)


def _environment(directory: Path) -> dict[str, str]:
    """Ours, with our own packages first on the path (-P keeps the folder we stand in off it) and one thread a rank."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    return kept | {
        "PYTHONPATH": path,
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(directory),
        "HF_HUB_OFFLINE": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM lets the launcher end its ranks; SIGKILL to the whole group ends what is left."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises SystemExit while ranks run, so that they are ended too; only where nobody else handles it."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _read(directory: Path, request: Request, *, timed_out: bool) -> Run:
    outcomes = []
    for number in range(len(request.cases)):
        files = directory.glob(f"outcome-{number}-*.json")
        outcomes.append({found.rank: found for found in (outcome_from(file.read_text()) for file in files)})
    complaint = (directory / "launcher.log").read_text(errors="replace").strip().splitlines()[-1:]
    return Run(tuple(outcomes), _first_death(directory), timed_out, complaint[0] if complaint else "")


def _first_death(directory: Path) -> Death | None:
    """The rank that died first; those that the launcher ended afterwards died of it."""
    path = directory / "deaths.json"
    if not path.exists():
        return None
    deaths = {int(rank): death for rank, death in json.loads(path.read_text()).items()}
    rank = min(deaths, key=lambda rank: deaths[rank][0])
    return Death(rank, int(deaths[rank][1]))
