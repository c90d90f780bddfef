"""Ranks started on this machine by torch's elastic launcher, and kept for many cases. Afterwards no process, port or file is
left, also after Ctrl-C.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from shardproof.launch.processes.first_cause import last_line
from shardproof.launch.processes.supervise import PATIENCE, Child, Stopped, child_process, own_environment, wait_for
from shardproof.launch.ranks.rank import GRACE
from shardproof.launch.ranks.request import Request, Start, write_request, write_start
from shardproof.launch.ranks.runner import CaseResult, Death
from shardproof.verify.run.outcome import Outcome, outcome_from
from shardproof.verify.stages.case import Case

_SCRIPT = Path(__file__).with_name("elastic.py")
_STARTING = 60.0
"""Seconds that ranks may take to start, beside the time limit of their first case."""


class TorchrunRanks:
    """A group of ranks that starts with the first case, and again after a case that ended its ranks."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self._life = ExitStack()
        self._process: Child | None = None
        self._directory = Path()
        self._requests = self._cases = 0

    def __enter__(self) -> "TorchrunRanks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and kind is None:
            (self._directory / "end").touch()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
        self._stop()

    def run(self, cases: Sequence[Case]) -> Iterator[CaseResult]:
        """One result for each case, in order."""
        done = 0
        while done < len(cases):
            for result in self._until_lost(tuple(cases[done:])):
                done += 1
                yield result

    def _until_lost(self, cases: tuple[Case, ...]) -> Iterator[CaseResult]:
        """The results up to the first case that the ranks did not survive."""
        begun = time.monotonic()
        allowed = self.start.timeout + GRACE + (_STARTING if self._process is None else 0.0)
        if self._process is None:
            self._begin()
        first, self._cases = self._cases, self._cases + len(cases)
        write_request(self._directory, self._requests, Request(cases, first))
        self._requests += 1
        for number in range(first, first + len(cases)):
            result, alive = self._wait(number, begun, begun + allowed)
            if not alive:
                self._stop()
                yield result
                return
            begun, allowed = time.monotonic(), self.start.timeout + GRACE
            yield result

    def _wait(self, number: int, begun: float, end: float) -> tuple[CaseResult, bool]:
        """The result of one case, and whether the ranks stay for another."""
        assert self._process is not None
        complete = wait_for(lambda: self._complete(number), (self._process,), until=end)
        seconds = time.monotonic() - begun
        if not isinstance(complete, Stopped):
            return CaseResult(complete, seconds), True
        late = complete is Stopped.LATE
        error = last_line(self._directory / "launcher.log")
        if not any(self._directory.glob("met-*")) and (apart := self._apart(seconds, error, late=late)):
            return CaseResult({}, seconds, apart=apart), False
        return CaseResult(
            _outcomes(self._directory, number), seconds, _first_death(self._directory), late, error
        ), False

    def _apart(self, seconds: float, error: str, *, late: bool) -> str:
        """What to say where no rank got as far as the others; empty where a rank died of something else."""
        nodes = self.start.nodes
        if nodes.count > 1 and (late or "Rendezvous" in error or "rendezvous" in error):
            where = f"{nodes.count} machines at {nodes.endpoint}"
            return f"not all of {where} came within {seconds:.0f} s; start the same command on each, with its own --node-rank"
        return f"the ranks did not meet within {seconds:.0f} s" if late else ""

    def _complete(self, number: int) -> dict[int, Outcome] | None:
        """The outcomes of all ranks, once every rank of this machine is ready for the next case."""
        nodes = self.start.nodes.count
        ready = len(list(self._directory.glob(f"ready-{number}-*"))) == self.start.ranks // nodes
        if not ready or len(list(self._directory.glob(f"outcome-{number}-*.json"))) < self.start.ranks:
            return None
        return _outcomes(self._directory, number)

    def _begin(self) -> None:
        self._requests = self._cases = 0
        self._directory = self._life.enter_context(_directory())
        write_start(self._directory, self.start)
        log = self._life.enter_context((self._directory / "launcher.log").open("wb")).fileno()
        self._process = self._life.enter_context(
            child_process(
                [sys.executable, "-P", str(_SCRIPT), str(self._directory)],
                environment=_environment(self._directory),
                stdin=subprocess.PIPE,  # it closes when this process is gone, and the launcher then ends its ranks
                stdout=log,
                stderr=log,
                patience=PATIENCE,
            )
        )

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


def _environment(directory: Path) -> dict[str, str]:
    """One thread a rank, no network, and temporary files in the directory that is removed."""
    return own_environment() | {
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(directory),
        "HF_HUB_OFFLINE": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _outcomes(directory: Path, number: int) -> dict[int, Outcome]:
    """The outcomes of one case that have been written so far, by rank."""
    files = directory.glob(f"outcome-{number}-*.json")
    return {found.rank: found for found in (outcome_from(file.read_text()) for file in files)}


def _first_death(directory: Path) -> Death | None:
    """The rank that died first: the launcher ends the others afterwards."""
    path = directory / "deaths.json"
    if not path.exists():
        return None
    deaths = {int(rank): death for rank, death in json.loads(path.read_text()).items()}
    rank = min(deaths, key=lambda rank: deaths[rank][0])
    _, exitcode, words = deaths[rank]
    return Death(rank, exitcode, words)
