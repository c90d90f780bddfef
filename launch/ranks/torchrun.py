"""Ranks on this machine that stay up between cases, and leave nothing behind: no process, no port, no file, also after
Ctrl-C.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from shardproof.launch.ranks.rank import GRACE
from shardproof.launch.ranks.request import Request, Start, write_request, write_start
from shardproof.verify.run.outcome import Outcome, outcome_from
from shardproof.verify.stages.case import Case

_SCRIPT = Path(__file__).with_name("elastic.py")
_ROOT = Path(__file__).parents[3]
_PATIENCE = 5.0
"""Seconds between asking the launcher to end its ranks and ending them all."""
_STARTING = 60.0
"""Seconds that ranks may take to start, beside the time limit of their first case."""
_POLL = 0.02


@dataclass(frozen=True, slots=True)
class Death:
    """A rank that ended without an answer: its exit code, negative for a signal, and the last line of its errors."""

    rank: int
    exitcode: int
    words: str = ""

    def __str__(self) -> str:
        if self.exitcode >= 0:
            return f"rank {self.rank} exited with code {self.exitcode}"
        return f"rank {self.rank} was killed by {signal.Signals(-self.exitcode).name}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one case: the outcome of each rank that answered, the first death, whether time ran out; `kept` if
    the ranks stay for another.

    `complaint` is the last line that the launcher wrote, for the case that no rank ever started.
    """

    outcomes: dict[int, Outcome]
    seconds: float
    death: Death | None = None
    timed_out: bool = False
    complaint: str = ""
    kept: bool = False


class Ranks(AbstractContextManager["Ranks"]):
    """A warm group of ranks. It starts with the first question, and again after a case that ended its ranks."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self._life = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = Path()
        self._requests = self._asked = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and kind is None:
            (self._directory / "end").touch()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
        self._stop()

    def ask(self, cases: tuple[Case, ...]) -> Iterator[Answer]:
        """One answer per case, in order; after one that the ranks did not survive, they are ended and no more come."""
        begun = time.monotonic()
        allowed = self.start.timeout + GRACE + (_STARTING if self._process is None else 0.0)
        if self._process is None:
            self._begin()
        first, self._asked = self._asked, self._asked + len(cases)
        write_request(self._directory, self._requests, Request(cases, first))
        self._requests += 1
        for number in range(first, first + len(cases)):
            answer = self._wait(number, begun, begun + allowed)
            if not answer.kept:
                self._stop()
                yield answer
                return
            begun, allowed = time.monotonic(), self.start.timeout + GRACE
            yield answer

    def _wait(self, number: int, begun: float, end: float) -> Answer:
        assert self._process is not None
        while True:
            over = self._process.poll() is not None  # before the files: those of ranks that are gone are there
            late = time.monotonic() > end
            outcomes = _outcomes(self._directory, number, self.start.ranks, anyway=over or late)
            seconds = time.monotonic() - begun
            ready = len(list(self._directory.glob(f"ready-{number}-*"))) == self.start.ranks // self.start.nodes.count
            if ready and len(outcomes) == self.start.ranks:
                return Answer(outcomes, seconds, kept=True)
            if over or late:
                return Answer(outcomes, seconds, _first_death(self._directory), late and not over, self._complaint())
            time.sleep(_POLL)

    def _complaint(self) -> str:
        lines = (self._directory / "launcher.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _begin(self) -> None:
        self._requests = self._asked = 0
        self._directory = self._life.enter_context(_directory())
        write_start(self._directory, self.start)
        log = self._life.enter_context((self._directory / "launcher.log").open("wb"))
        self._process = self._life.enter_context(_started(self._directory, log.fileno()))

    def _stop(self) -> None:
        self._process = None
        self._life.close()


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


def _outcomes(directory: Path, number: int, ranks: int, *, anyway: bool) -> dict[int, Outcome]:
    """What the ranks answered to one case: nothing before all have, unless `anyway`."""
    files = list(directory.glob(f"outcome-{number}-*.json"))
    if len(files) < ranks and not anyway:
        return {}
    return {found.rank: found for found in (outcome_from(file.read_text()) for file in files)}


def _first_death(directory: Path) -> Death | None:
    """The rank that died first; those that the launcher ended afterwards died of it."""
    path = directory / "deaths.json"
    if not path.exists():
        return None
    deaths = {int(rank): death for rank, death in json.loads(path.read_text()).items()}
    rank = min(deaths, key=lambda rank: deaths[rank][0])
    _, exitcode, words = deaths[rank]
    return Death(rank, exitcode, words)
