"""The ranks of the torchrun or Slurm job that this process is part of: every rank runs the same cases and gets the same
results.
"""

import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from torch.distributed import DistError

from shardproof.launch.ranks.job import World
from shardproof.launch.ranks.rank import RankSlot, set_torch_variables
from shardproof.launch.ranks.runner import CaseResult
from shardproof.launch.result import UndecidedError
from shardproof.verify.run.outcome import Outcome
from shardproof.verify.stages.case import Case


class JobRanks:
    """This rank with the others of its job; `timeout` is in seconds, for one case. After a rank was lost, no rank answers."""

    def __init__(self, world: World, timeout: float) -> None:
        self.world = world
        set_torch_variables(world)
        try:
            self._slot = RankSlot(world, timeout=timeout)
        except (DistError, ValueError) as error:  # a peer that never comes, an address that is none
            raise UndecidedError(
                f"the {world.size} ranks of the job did not meet within {timeout:g} s: {' '.join(str(error).split())[:200]}"
            ) from error
        self._cases = 0
        self._together = True

    def __enter__(self) -> "JobRanks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Somebody else started the job, and ends it."""

    def run(self, cases: Sequence[Case]) -> Iterator[CaseResult]:
        """One result for each case, in order."""
        for case in cases:
            began = time.monotonic()
            outcomes: dict[int, Outcome] = {}
            if self._together:
                outcomes, self._together = self._slot.run(case, self._cases, write=_nowhere)
            self._cases += 1
            lost = len(outcomes) < self.world.size
            yield CaseResult(outcomes, time.monotonic() - began, timed_out=lost)


def _nowhere(_: Outcome) -> None:
    """The other ranks get an outcome through the store, and no other process waits for it."""
