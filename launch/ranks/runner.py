"""What every kind of ranks has in common: cases in, one result for each, and nothing left behind at the end.

`TorchrunRanks` starts processes on this machine, `JobRanks` uses those of the torchrun or Slurm job around, `ThreadRanks` uses
threads of this process; in a client's own environment, `VllmEngine` serves checkpoints and `ClientRanks` train or generate.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeVar

from shardproof.verify.run.outcome import Outcome

CANNOT_WRITE = os.EX_IOERR
"""The exit code of a rank that cannot write its outcome: the log of such a rank may be empty for the same reason."""
Question = TypeVar("Question", contravariant=True)
Result = TypeVar("Result", covariant=True)


class Runner(Protocol[Question, Result]):
    """Ranks that live as long as the `with` block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, cases: Sequence[Question]) -> Iterator[Result]:
        """One result for each case, in order, as each is done; a case that cannot be run has a result that says why."""


@dataclass(frozen=True, slots=True)
class Death:
    """A rank that ended without an outcome: its exit code, negative for a signal, and the last line of its errors."""

    rank: int
    exitcode: int
    words: str = ""

    def __str__(self) -> str:
        if self.exitcode == CANNOT_WRITE:
            return f"rank {self.rank} could not write its outcome, for the disk is full or read-only, and ended"
        if self.exitcode >= 0:
            return f"rank {self.rank} exited with code {self.exitcode}"
        return f"rank {self.rank} was killed by {signal.Signals(-self.exitcode).name}"


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What came back for one case: the outcome of each rank that answered, by rank, and the seconds that it took.

    `death` is the rank that died first, `timed_out` whether the time was over, `launcher_error` the last line that the launcher
    wrote where it ended, `apart` says how long the ranks waited in vain for each other before the case began.
    """

    outcomes: dict[int, Outcome]
    seconds: float
    death: Death | None = None
    timed_out: bool = False
    launcher_error: str = ""
    apart: str = ""
