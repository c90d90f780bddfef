"""Where ranks are: whether this process is one of a job that somebody else started, and on which machines ours run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rank:
    """This process in its job. Only the first rank speaks."""

    number: int
    world: int

    @property
    def speaks(self) -> bool:
        """Whether this rank prints."""
        return self.number == 0


def this_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """The rank that this process is; None where it is alone.

    The same answer as `launch.ranks.rank.surrounding`, which needs torch; here a wrong option can be told in no time. Of a
    Slurm job only a step with several tasks counts: its batch script has a rank too, and is alone.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Rank(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Rank(int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"]))
    return None


@dataclass(frozen=True, slots=True)
class Nodes:
    """The machines of one group of ranks: how many, which of them this is, and `host:port` where they meet."""

    count: int = 1
    this: int = 0
    endpoint: str = "localhost:0"
