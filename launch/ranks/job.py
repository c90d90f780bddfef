"""The torchrun or Slurm job around this process, if there is one, and the machines of ranks that are started here. No torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from shardproof.launch.result import MisuseError

ENDPOINT = ("MASTER_ADDR", "MASTER_PORT")
"""Where the ranks of a torchrun job meet."""


@dataclass(frozen=True, slots=True)
class World:
    """The job that this process is a rank of. Only the first rank prints."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints."""
        return self.rank == 0


def surrounding(environment: Mapping[str, str] = os.environ) -> World | None:
    """The torchrun or Slurm job that this process was started in; None where there is no job.

    In a Slurm job only a step with several tasks counts (`srun`): the batch script has a rank as well, but no peers.

    Raises:
        MisuseError: the variables of a job are there, and make no rank of one.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size = _count(environment, "WORLD_SIZE", least=1)
        rank = _count(environment, "RANK", below=size)
        local_size = _count(environment, "LOCAL_WORLD_SIZE", least=1, default=size)
        local = _count(environment, "LOCAL_RANK", below=local_size, default=rank % local_size)
        if missing := [name for name in ENDPOINT if not environment.get(name)]:
            raise MisuseError(
                f"RANK and WORLD_SIZE say that this process is one of {size} ranks, and {' and '.join(missing)} do not say "
                "where they meet; start the command with torchrun, or unset RANK and WORLD_SIZE."
            )
        return World(rank, size, local, local_size)
    if "SLURM_PROCID" in environment and _count(environment, "SLURM_STEP_NUM_TASKS", least=1, default=1) > 1:
        size = _count(environment, "SLURM_STEP_NUM_TASKS", least=1)
        rank = _count(environment, "SLURM_PROCID", below=size)
        first = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
        return World(rank, size, _count(environment, "SLURM_LOCALID", default=0), int(first[0]) if first else size)
    return None


def _count(
    environment: Mapping[str, str], name: str, *, least: int = 0, below: int | None = None, default: int | None = None
) -> int:
    """The whole number of a job's variable; a variable that is not set gives the default."""
    if default is not None and name not in environment:
        return default
    text = environment[name].strip()
    number = int(text) if re.fullmatch(r"\d{1,9}", text) else -1
    if number < least or (below is not None and number >= below):
        wanted = f"a number from {least}" + (f" to {below - 1}" if below is not None else " up")
        raise MisuseError(
            f"the variable {name} of a job is {environment[name]!r}, and not {wanted}; start the command with torchrun or srun, "
            "or unset the variables that another job left behind."
        )
    return number


def is_first_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process prints: it is alone, or rank 0 of its job. Variables that make no job are no reason to be silent."""
    try:
        world = surrounding(environment)
    except MisuseError:
        return True
    return world is None or world.is_first


def in_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether other ranks of a job run the same command."""
    try:
        return surrounding(environment) is not None
    except MisuseError:
        return False


@dataclass(frozen=True, slots=True)
class Nodes:
    """The machines of one group of ranks: how many, the number of this one from 0, and `host:port` of the rendezvous."""

    count: int = 1
    this: int = 0
    endpoint: str = "localhost:0"
