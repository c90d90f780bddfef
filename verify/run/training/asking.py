"""What a trainer does, asked of the ranks: each question, the ways to do it, and which of them gives the right answer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from shardproof.planner.ir.findings import Fault
from shardproof.verify.run.training.answers import Answered, TrainingAnswer
from shardproof.verify.run.training.bench import NotAskedError, TrainingBench, WaitsForeverError


@dataclass(frozen=True, slots=True)
class Measured:
    """How far the ranks are from one device: `error` and `limit` are relative, `place` is a parameter or module path.

    `note` says in words what was seen beside the number.
    """

    error: float
    limit: float
    place: str = ""
    note: str = ""

    @property
    def right(self) -> bool:
        """Whether the error is within the limit; a NaN is not."""
        return self.error <= self.limit


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do what is asked: `label` says it in words, `measure` does it on this rank."""

    label: str
    measure: Callable[[TrainingBench], Measured]


@dataclass(frozen=True, slots=True)
class TrainingQuestion:
    """`ways` begin with what trainers do by themselves; the others are tried only where it fails. `fault` is whose it is then."""

    name: str
    code: str
    ways: tuple[Way, ...]
    fault: Fault = Fault.CLIENT


def answer(question: TrainingQuestion, bench: TrainingBench) -> TrainingAnswer:
    """Try the ways of a question until one is right. A collective: every rank must call it."""
    first: tuple[float, str, str] | None = None
    for way in question.ways:
        try:
            mine: Measured | str = way.measure(bench)
        except NotAskedError as reason:
            return TrainingAnswer(question.name, Answered.NOT_ASKED, note=str(reason))
        except WaitsForeverError as error:
            mine = f"would never return: {error}"
        except (Exception, CheckpointException) as error:  # whatever the client raises is the answer
            lines = str(error).strip().splitlines() or [""]
            mine = f"raises {type(error).__name__}: {lines[0][:160]}"
        far, failed, place, note = _agreed(mine, bench)
        if not failed:
            answered = Answered.RIGHT if first is None else Answered.OTHERWISE
            before = first or (0.0, "", "")
            return TrainingAnswer(question.name, answered, way.label, far, before[1], before[2], note)
        first = first or (far, failed, place)
    assert first is not None
    return TrainingAnswer(question.name, Answered.WRONG, "", *first)


def _agreed(mine: Measured | str, bench: TrainingBench) -> tuple[float, str, str, str]:
    """The worst of all ranks: error, what failed (empty where nothing did), place, note."""
    every: list[Measured | str | None] = [None] * bench.case.tp
    dist.all_gather_object(every, mine)
    raised = next((one for one in every if isinstance(one, str)), None)
    if raised is not None:
        return float("inf"), raised, "", ""
    worst = max((one for one in every if isinstance(one, Measured)), key=lambda one: (not one.right, one.error))
    failed = "" if worst.right else f"is off by {worst.error:.1e} (relative)"
    return worst.error, failed, worst.place, worst.note
