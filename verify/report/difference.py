"""The differences between two plans of one model, as `verify.proof.compare_plans` computes them. Data only, no torch."""

from dataclasses import dataclass
from enum import StrEnum


class Backed(StrEnum):
    """Which side of a difference is right according to the proof."""

    BOTH = "both are right"
    FIRST = "the first is right, the second refuted"
    SECOND = "the second is right, the first refuted"
    TOGETHER = "right only together with other entries"
    OPEN = "not decided"


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that two plans give differently, None where one has none; for a stage, its inputs and outputs as text.

    `codes` are what the proof finds in the second plan with the first's entry.
    """

    attribute: str
    key: str
    first: str | None
    second: str | None
    backed: Backed
    codes: tuple[str, ...] = ()
