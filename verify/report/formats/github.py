"""Reports as annotations of a GitHub workflow: a line for each finding, which the runner turns into a note at its source line."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Severity
from shardproof.planner.ir.readable_text import visible
from shardproof.verify.findings.catalogue import name_of
from shardproof.verify.report.case_report import CaseReport
from shardproof.verify.report.formats.text import finding_text

_COMMANDS = {Severity.ERROR: "error", Severity.UNDECIDED: "warning", Severity.WARNING: "notice"}


def reports_github(cases: Sequence[CaseReport]) -> str:
    """Workflow commands, one a line; findings that a baseline holds are left out."""
    return "\n".join(line for case in cases for line in _case(case))


def _case(case: CaseReport) -> list[str]:
    if case.report is None:
        return [f"::error title={_property(case.model)}::{_data(f'{case.model}, {case.asked}: {case.error}')}"]
    lines = []
    for finding in case.fresh:
        where = case.locate(finding)
        title = f"{finding.code} {name_of(finding.code) or ''}".strip()
        place = f"file={_property(where.file)},line={max(where.line, 1)},title={_property(title)}"
        message = f"{case.model}, {case.asked}: {finding_text(finding)}"
        lines.append(f"::{_COMMANDS[finding.severity]} {place}::{_data(message)}")
    return lines


def _data(text: str) -> str:
    """The runner ends a command at the end of the line, and reads `%0A` as one."""
    return visible(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
