"""One diagnosed problem, and what mends it. The verdict of a report is computed from these, never stored."""

from dataclasses import dataclass
from enum import StrEnum

from planner.ir.plan import Edit


class Severity(StrEnum):
    ERROR = "error"
    """The plan gives a wrong result, or none."""
    UNDECIDED = "undecided"
    """No rule tells: the verdict is `not proved`."""
    WARNING = "warning"
    """Right, but not what its author will want."""


class Verdict(StrEnum):
    PROVED = "proved"
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    NOT_PROVED = "not proved"


class Fault(StrEnum):
    """Whose fault a finding is."""

    PLAN = "plan"
    MODEL = "model"
    CLIENT = "client"
    OURS = "shardproof"


@dataclass(frozen=True, slots=True)
class Source:
    """A line of modeling code. `file` is relative to the package or folder it belongs to, never absolute."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where: the plan entry at fault, the module, the source line. Each may be unknown."""

    entry: str | None = None
    module: str | None = None
    source: Source | None = None

    def __str__(self) -> str:
        parts = [f'entry "{self.entry}"' if self.entry else "", self.module or "", str(self.source or "")]
        return ", ".join(filter(None, parts)) or "the model"


@dataclass(frozen=True, slots=True)
class Fix:
    """Edits that were applied and re-checked before they are offered."""

    title: str
    edits: tuple[Edit, ...]
    safety: str = "re-checked at the level that found the fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` names a rule of `verify.catalogue`; `why` is one clause of maths, `found` against `needed`."""

    code: str
    severity: Severity
    message: str
    place: Place = Place()
    why: str = ""
    found: str = ""
    needed: str = ""
    fix: Fix | None = None
    fault: Fault = Fault.PLAN
