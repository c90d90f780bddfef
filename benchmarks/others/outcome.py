"""What became of one type, as one of a few kinds, with its reason."""

from dataclasses import dataclass
from enum import StrEnum

from benchmarks.zoo.rows import Judged, Row


class Outcome(StrEnum):
    CONFIRMED = "planned, proved and confirmed"
    PROVED = "planned and proved, not run"
    UNDECIDED = "planned, not proved"
    WRONG = "planned, proved and refuted by the run"
    WHOLE = "nothing to split"
    NO_PLAN = "no plan, with a reason"
    CRASHED = "crashed or too slow"


@dataclass(frozen=True, slots=True)
class Told:
    kind: Outcome
    reason: str = ""


def outcome(row: Row) -> Told:
    """The kind of a row, and why it is not a better one."""
    reason = row.reason
    if row.stage == "crash" or "its process ended" in reason or "no answer in" in reason:
        return Told(Outcome.CRASHED, reason)
    if row.mine is None:
        return Told(Outcome.NO_PLAN, reason)
    if row.mine.fraction == 0:
        return Told(Outcome.WHOLE, reason)
    if not row.mine.right("proof"):
        return Told(Outcome.UNDECIDED, _finding(row.mine, "proof") or reason)
    if "refuted" in row.mine.run.values():
        return Told(Outcome.WRONG, _finding(row.mine, "run"))
    if not row.mine.right("run"):
        return Told(Outcome.PROVED, reason or _finding(row.mine, "run"))
    return Told(Outcome.CONFIRMED, _finding(row.mine, "run"))


def _finding(judged: Judged, level: str) -> str:
    return next((text for where, text in judged.findings.items() if where.startswith(level)), "")
