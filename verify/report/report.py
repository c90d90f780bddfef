"""The results of a verification by level; the verdict is computed from the findings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.findings import Finding, Severity, Verdict
from shardproof.verify.report.scope import Scope


@dataclass(frozen=True, slots=True)
class LevelResult:
    """One level's outcome: `level` is `proof`, `run`, `train`, `client` or `contract with CLIENT`, `measures` are named relative
    errors.
    """

    level: str
    seconds: float
    findings: tuple[Finding, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)
    scope: Scope | None = None
    """What a proof covers; None of other levels, and where nothing was related."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """Of level `train`: each question with its answer in a few words."""

    @property
    def verdict(self) -> Verdict:
        """`refuted` on any error, `not proved` on anything undecided, else `proved` or `confirmed`."""
        severities = {finding.severity for finding in self.findings}
        if Severity.ERROR in severities:
            return Verdict.REFUTED
        if Severity.UNDECIDED in severities:
            return Verdict.NOT_PROVED
        return Verdict.PROVED if self.level == "proof" else Verdict.CONFIRMED


class SharesTold(Protocol):
    """What a plan saves, as a report tells it; `planner.layouts.shares` computes it."""

    @property
    def sentence(self) -> str:
        """What is split, in one line."""
        ...

    @property
    def warning(self) -> str:
        """What every rank does or holds whole; empty where there is nothing to warn of."""
        ...

    def to_json(self) -> dict[str, object]:
        """The key `shares` of the JSON output."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """All levels of one plan at one layout; `degrees` are those at which the plan is legal, and `shares` what it saves, if they
    were computed.
    """

    model: str
    levels: tuple[LevelResult, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    degrees: Degrees | None = None
    shares: SharesTold | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every level's findings, in the order of the levels."""
        return tuple(finding for level in self.levels for finding in level.findings)

    @property
    def verdict(self) -> Verdict:
        """The worst level decides; with all levels right, `confirmed` if a run confirmed the plan, else `proved`."""
        verdicts = [level.verdict for level in self.levels]
        for verdict in (Verdict.REFUTED, Verdict.NOT_PROVED, Verdict.CONFIRMED, Verdict.PROVED):
            if verdict in verdicts:
                return verdict
        return Verdict.NOT_PROVED
