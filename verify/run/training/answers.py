"""The answers to training questions, as data that travels between processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Answered(StrEnum):
    RIGHT = "right"
    OTHERWISE = "right another way"
    """The first way fails, and another is right."""
    WRONG = "wrong"
    NOT_ASKED = "not asked"
    NOTHING = "nothing to ask"
    """The model has no dropout, or says that it does not do what is asked."""


@dataclass(frozen=True, slots=True)
class TrainingAnswer:
    """The answer to one question, the same on every rank.

    Attributes:
        question: its name.
        answered: how it ended.
        way: the way that is right; empty where none is.
        error: the relative error of that way, or of the first where none is right; infinite where it raised.
        failed: what became of the first way, in words; empty where it is right.
        place: the parameter or module where the first way is wrong.
        note: what else was seen, or why the question was not asked.
    """

    question: str
    answered: Answered
    way: str = ""
    error: float = 0.0
    failed: str = ""
    place: str = ""
    note: str = ""


def training_answer_from(data: Mapping[str, Any]) -> TrainingAnswer:
    """The answer of `dataclasses.asdict`."""
    return TrainingAnswer(**{**data, "answered": Answered(data["answered"])})
