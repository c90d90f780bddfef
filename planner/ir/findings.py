"""One diagnosed problem and its fix. The verdict of a report is computed from findings, never stored."""

from dataclasses import dataclass, replace
from enum import StrEnum

from shardproof.planner.ir.plan import Edit


class Severity(StrEnum):
    ERROR = "error"
    """The plan gives a wrong result, or a rank raises."""
    UNDECIDED = "undecided"
    """Something could not be decided: the verdict is `not proved`."""
    WARNING = "warning"
    """The plan is right, but probably not what its author intended."""


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
    CALLER = "caller"
    """Who calls the client: a training script, for instance."""
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
    """Edits that were applied and checked before they are offered. Their keys are written like the finding's entry."""

    title: str
    edits: tuple[Edit, ...]
    safety: str = "re-checked at the level that found the fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem. `code` is in `verify.findings.catalogue`; `why` is the reason in one clause; `found` is what there is,
    `needed` what is needed instead, often as placements.
    """

    code: str
    severity: Severity
    message: str
    place: Place = Place()
    why: str = ""
    found: str = ""
    needed: str = ""
    fix: Fix | None = None
    fault: Fault = Fault.PLAN


def as_written(finding: Finding, base_prefix: str) -> Finding:
    """A finding with its keys as in a plan file: those of the base model are relative to it."""
    inside = f"{base_prefix}." if base_prefix else ""
    entry = finding.place.entry.removeprefix(inside) if finding.place.entry is not None else None
    fix = finding.fix
    if fix is not None:
        edits = tuple(replace(edit, pattern=edit.pattern.removeprefix(inside)) for edit in fix.edits)
        fix = replace(fix, edits=edits, title=fix.title.replace(f'"{inside}', '"') if inside else fix.title)
    return replace(finding, place=replace(finding.place, entry=entry), fix=fix)
