"""The arguments of `plan verify` as one request, and the combinations of them that are refused."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shardproof.launch.commands.read_inputs import ModelReference
from shardproof.launch.ranks.job import Nodes
from shardproof.launch.result import MisuseError, ReportFormat
from shardproof.planner.ir.plan import Plan


class Level(StrEnum):
    PROOF = "proof"
    RUN = "run"
    TRAIN = "train"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class RunLayout:
    """Parallel degrees of one run: tensor, pipeline, expert."""

    tp: int = 1
    pp: int = 1
    ep: int = 1

    def __str__(self) -> str:
        parts = [f"tp {self.tp}"] if self.tp > 1 or self.pp == 1 else []
        more = [f"{axis} {size}" for axis, size in (("pp", self.pp), ("ep", self.ep)) if size > 1]
        return " x ".join([*parts, *more])


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """The arguments of `plan verify`. Without `levels`: the proof, then the run unless the proof refutes; `train` adds what a
    trainer does to either. `timeout` is in seconds.
    """

    model: ModelReference
    plan_file: Path | None = None
    plan: Plan | None = None
    """The plan that was read already, from standard input."""
    layout: RunLayout = RunLayout(tp=2)
    levels: tuple[Level, ...] = ()
    form: ReportFormat = ReportFormat.TEXT
    timeout: float = 300.0
    client: str | None = None
    client_python: str | None = None
    weights: bool = False
    strict: bool = False
    train: bool = False
    nodes: Nodes | None = None

    @property
    def trains(self) -> bool:
        """Whether level train was asked for, by its option or by name."""
        return self.train or Level.TRAIN in self.levels

    @property
    def asked(self) -> str:
        """The layout, and the client if it is not Transformers, in words."""
        return f"{self.layout} for {self.client}" if self.client else str(self.layout)


def run_layout(tp: int | None, pp: int | None, *, ranks: int | None, ep: int | None = None) -> RunLayout:
    """The degrees to run at.

    A degree that is not given: tp is 2, or inside a job of `ranks` what uses all of them; pp and ep are 1. Experts lie on the
    tensor-parallel ranks, so `ep` without `tp` sets `tp` as well.

    Raises:
        MisuseError: the degrees contradict each other, make one rank, or do not use the ranks of the job.
    """
    tp = tp or ep
    if ranks is None:
        chosen = RunLayout(tp or (1 if pp else 2), pp or 1, ep or 1)
    else:
        chosen = RunLayout(tp or max(ranks // (pp or 1), 1), pp or 1, ep or 1)
    if chosen.ep not in (1, chosen.tp) or (chosen.ep > 1 and chosen.pp > 1):
        raise MisuseError(f"experts lie on the tensor-parallel ranks: give --ep {chosen.tp}, without stages, or none.")
    if chosen.tp * chosen.pp == 1:
        raise MisuseError("one rank is the single-device model itself; give --tp or --pp of 2 or more.")
    if ranks is not None and chosen.tp * chosen.pp != ranks:
        need = chosen.tp * chosen.pp
        raise MisuseError(
            f"{chosen} needs {need} ranks, and this job has {ranks}; start {need}, or give other degrees."
        )
    return chosen


def nodes_of(count: int, this: int, endpoint: str) -> Nodes | None:
    """The machines that run this command together; None for this machine alone.

    Args:
        count: how many machines.
        this: the number of this one, from 0.
        endpoint: `host:port` of the rendezvous, on the first machine.

    Raises:
        MisuseError: there is no endpoint, or `this` is not below `count`.
    """
    if count == 1:
        return None
    if not endpoint:
        raise MisuseError("several machines need a rendezvous: give --rdzv-endpoint HOST:PORT of the first.")
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise MisuseError(f"--rdzv-endpoint {endpoint} is not HOST:PORT, such as first-machine:29500.")
    if this >= count:
        raise MisuseError(f"--node-rank {this} is none of {count} machines; they count from 0.")
    return Nodes(count, this, endpoint)
