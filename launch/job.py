"""Whether this process is one rank of a job that somebody else started."""

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


# torchrun sets the first pair; srun the second, in a step's tasks only (a batch script has no SLURM_STEP_ID of a step).
_PAIRS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))


def this_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """The rank that this process is; None where it is alone."""
    for number, world in _PAIRS:
        if environment.get(number, "").isdigit() and environment.get(world, "").isdigit():
            return Rank(int(environment[number]), int(environment[world]))
    return None
