"""The torchrun or Slurm job around this process, if there is one, and the machines of ranks that are started here. No torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rank:
    """This process in its job. Only the first rank prints."""

    number: int
    world: int

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints."""
        return self.number == 0


def this_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """This process as a rank of its job; None where there is no job.

    The same as `launch.ranks.rank.surrounding`, without torch, so that wrong options are reported at once. In a Slurm job only a
    step with several tasks counts: the batch script has a rank as well, but no peers.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Rank(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Rank(int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"]))
    return None


@dataclass(frozen=True, slots=True)
class Nodes:
    """The machines of one group of ranks: how many, the number of this one from 0, and `host:port` of the rendezvous."""

    count: int = 1
    this: int = 0
    endpoint: str = "localhost:0"
