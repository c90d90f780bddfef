"""What a trainer does, asked of the ranks: each question, the ways to do it, and which of them gives the right answer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from shardproof.planner.ir.findings import Fault
from shardproof.verify.run.outcome import PEER_LOST
from shardproof.verify.run.training.answers import Answered, TrainingAnswer
from shardproof.verify.run.training.bench import (
    AnotherRankError,
    NotAskedError,
    NothingToAskError,
    TrainingBench,
    WaitsForeverError,
)


class LostRanksError(RuntimeError):
    """A rank waited for the others in vain: one of them raised in the middle of a step, and no collective works any more."""


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


Tried = tuple[float, str, str, str]
"""What all ranks found of a way: the worst error, what failed (empty where nothing did), the place, a note."""


def answer(question: TrainingQuestion, bench: TrainingBench, tried: dict[Way, Tried] | None = None) -> TrainingAnswer:
    """Try the ways of a question until one is right. A collective: every rank must call it.

    A way that `tried` holds is not tried again; it gets the ways that are.
    """
    known = {} if tried is None else tried
    first: tuple[float, str, str] | None = None
    for way in question.ways:
        if way not in known:
            try:
                mine = _measured(way, bench)
            except NotAskedError as reason:
                return TrainingAnswer(question.name, Answered.NOT_ASKED, note=str(reason))
            except NothingToAskError as reason:
                return TrainingAnswer(question.name, Answered.NOTHING, note=str(reason))
            known[way] = _agreed(mine, bench)
        far, failed, place, note = known[way]
        if not failed:
            answered = Answered.RIGHT if first is None else Answered.OTHERWISE
            before = first or (0.0, "", "")
            return TrainingAnswer(question.name, answered, way.label, far, before[1], before[2], note)
        first = first or (far, failed, place)
    assert first is not None
    return TrainingAnswer(question.name, Answered.WRONG, "", *first)


def _measured(way: Way, bench: TrainingBench) -> Measured | str:
    """What this rank finds, or what became of it in words.

    Raises:
        NotAskedError: one device cannot answer.
        NothingToAskError: there is nothing to ask.
        LostRanksError: this rank waited for another in vain.
    """
    try:
        return way.measure(bench)
    except (NotAskedError, NothingToAskError):
        raise
    except AnotherRankError:
        return Measured(float("inf"), 0.0)
    except WaitsForeverError as error:
        return f"would never return: {error}"
    except (Exception, CheckpointException) as error:  # whatever the client raises is the answer
        if PEER_LOST.search(str(error)):
            raise LostRanksError(way.label) from error
        return _raised(error)


def _raised(error: Exception | CheckpointException) -> str:
    """An exception in words; of a distributed checkpoint, what went wrong on its first rank."""
    failures = error.failures if isinstance(error, CheckpointException) else {}
    cause = next((failure[0] for failure in failures.values()), error)
    lines = str(cause).strip().splitlines() or [""]
    return f"raises {type(error).__name__}: {lines[0][:160]}"


def _agreed(mine: Measured | str, bench: TrainingBench) -> Tried:
    """The worst of all ranks. Raises `LostRanksError` where not all of them come."""
    every: list[Measured | str | None] = [None] * bench.case.tp
    try:
        dist.all_gather_object(every, mine)
    except RuntimeError as error:
        raise LostRanksError(mine if isinstance(mine, str) else "another rank does not come") from error
    raised = next((one for one in every if isinstance(one, str)), None)
    if raised is not None:
        return float("inf"), raised, "", ""
    worst = max((one for one in every if isinstance(one, Measured)), key=lambda one: (not one.right, one.error))
    failed = "" if worst.right else f"is off by {worst.error:.1e} (relative)"
    return worst.error, failed, worst.place, worst.note
