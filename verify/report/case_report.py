"""One model at one layout, among several that were verified or checked together. Data only."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeAlias

from shardproof.planner.ir.findings import Finding, Severity, Source
from shardproof.verify.report.report import Report

NOWHERE = Source("config.json", 1)
"""Where a finding is shown of which nothing else is known."""
Locate: TypeAlias = Callable[[Finding], Source]
"""Gives the file of a finding, relative to the reader's repository, and the line."""


def source_of(finding: Finding) -> Source:
    """The line of the model's code that a finding names."""
    return finding.place.source or NOWHERE


@dataclass(frozen=True, slots=True)
class CaseReport:
    """What was asked of one model, and the report; without a report, `error` is the sentence that says why there is none.

    `asked` is the layout and the client in words, `skipped` a line about a level that did not run, `code` the exit code.
    `known` are the numbers (in `findings`) of those that a baseline holds; None without a baseline.
    """

    model: str
    asked: str
    code: int
    report: Report | None = None
    error: str = ""
    skipped: str = ""
    locate: Locate = source_of
    known: frozenset[int] | None = None

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return self.report.verdict.value if self.report is not None else "no report"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings."""
        return self.report.findings if self.report is not None else ()

    @property
    def fresh(self) -> tuple[Finding, ...]:
        """The findings that no baseline holds."""
        return tuple(finding for number, finding in enumerate(self.findings) if number not in (self.known or ()))

    @property
    def old(self) -> tuple[Finding, ...]:
        """The findings that a baseline holds."""
        return tuple(self.findings[number] for number in sorted(self.known or ()))

    @property
    def unknown(self) -> Report:
        """The report with the findings that no baseline holds; what it says of verdicts is not the case's."""
        assert self.report is not None
        numbers, levels = count(), []
        for level in self.report.levels:
            kept = tuple(finding for finding in level.findings if next(numbers) not in (self.known or ()))
            levels.append(replace(level, findings=kept))
        return replace(self.report, levels=tuple(levels))

    @property
    def worst(self) -> Severity | None:
        """The worst severity of a finding that no baseline holds."""
        have = {finding.severity for finding in self.fresh}
        return next((severity for severity in Severity if severity in have), None)
