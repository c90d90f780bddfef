"""What a stage may be told to do otherwise than its plan says: the mistakes of stage runtimes, as data.

A stage without departures is the one that a plan stands for. The same description is what the proof traces
(`verify.proof.stages`) and what the ranks run, so each can be held against the other.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Slip(StrEnum):
    """One kind of mistake; what `Departure.what` names stands in brackets."""

    AGAIN = "what was received enters as what a module gave, so that all behind it is applied again"  # module
    SKIPPED = "the first layer is given what a module gave, and what lies between is skipped"  # module
    APPLIED = "a module is applied to what is sent"  # module, kept on the stage
    KEPT = "a module of another stage runs here too"  # module
    UNPASSED = "an argument of the own layers is not passed"  # argument
    TAKES = "a layer is given an argument of another layer"  # argument
    LOCAL_INDEX = "the own layers are numbered from 0"
    UNTIED = "a tied weight is not loaded"  # parameter
    UNSUMMED = "the gradient of a tied weight is not summed over the stages"  # parameter
    PEER = "two stages stand in each other's place"
    FROZEN = "the own layers lose their gradients at set-up"
    UNASKED = "an argument of the caller is not handed on"  # argument
    BARE = "absent layers are placeholders without attributes"


@dataclass(frozen=True, slots=True)
class Departure:
    """One mistake on one stage; `layer` and `other` are layers (`TAKES`) or stages (`PEER`)."""

    slip: Slip
    what: str = ""
    stage: int = 1
    layer: int = -1
    other: int = -1

    def __str__(self) -> str:
        places = f" {self.layer} <- {self.other}" if self.other >= 0 else ""
        where = f"stage {self.stage}: " if self.stage >= 0 else ""
        return f"{where}{self.slip.name.lower()} {self.what}{places}".rstrip()


def order_of(departures: Iterable[Departure], stages: int) -> tuple[int, ...]:
    """Which stage's program stands at each place of the pipeline."""
    order = list(range(stages))
    for one in departures:
        if one.slip is Slip.PEER:
            order[one.layer], order[one.other] = order[one.other], order[one.layer]
    return tuple(order)


def kept(departures: Iterable[Departure], stage: int) -> frozenset[str]:
    """Modules that a stage runs although they are another stage's."""
    return frozenset(one.what for one in departures if one.slip in (Slip.KEPT, Slip.APPLIED) and one.stage == stage)


def unsummed(departures: Iterable[Departure]) -> frozenset[str]:
    """Parameters whose gradients the stages do not sum."""
    return frozenset(one.what for one in departures if one.slip is Slip.UNSUMMED)
