"""A case: a model, a plan and a layout, which the proof traces and the ranks run."""

from dataclasses import dataclass
from enum import StrEnum

from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import LoadedModel
from shardproof.verify.stages.faults import NO_FAULTS, StageFaults


class Applied(StrEnum):
    """Who applies the plan's styles to the model."""

    CLIENT = "Transformers"
    OURS = "shardproof's own application of the styles"


class Schedule(StrEnum):
    """The schedules of `torch.distributed.pipelining` that stages are run by; only the last takes several chunks a rank."""

    GPIPE = "GPipe"
    ONE_F_ONE_B = "1F1B"
    INTERLEAVED = "interleaved 1F1B"


@dataclass(frozen=True, slots=True)
class Staging:
    """How a pipeline is cut and run.

    `bounds` are the first layers of stages 1, 2, ...; with none, the split is even. Stage `s` lies on rank `s % pp`, and every
    rank holds `rounds` stages.

    `faults` are for tests of the verifier itself: mistakes that it has to find.
    """

    schedule: Schedule = Schedule.GPIPE
    rounds: int = 1
    bounds: tuple[int, ...] = ()
    faults: StageFaults = NO_FAULTS


@dataclass(frozen=True, slots=True)
class Case:
    """One run: `loaded` is the twin (it pickles, once its module is imported), `plan` the plan under test.

    With `weights`, `loaded` is the real model, and its checkpoint is run in its own dtype. With `training`, the ranks are asked
    what a trainer does, instead of what a server and one backward do.
    """

    loaded: LoadedModel
    plan: Plan
    tp: int = 1
    pp: int = 1
    ep: int = 1
    seed: int = 0
    weights: bool = False
    applied: Applied = Applied.CLIENT
    staging: Staging = Staging()
    training: bool = False


KEPT = 2
"""The value of `logits_to_keep`: logits of so many last tokens."""
