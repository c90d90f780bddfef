"""A verification report as text, JSON, SARIF or HTML."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardproof.launch.output.source_excerpts import excerpt
from shardproof.launch.result import ReportFormat
from shardproof.planner.ir.explanation import Explanation
from shardproof.planner.ir.plan import Plan
from shardproof.planner.ir.readable_text import format_bytes, one_line
from shardproof.verify.report.case_report import CaseReport
from shardproof.verify.report.formats.github import reports_github
from shardproof.verify.report.formats.html import report_html, reports_html
from shardproof.verify.report.formats.json import case_json, cases_json
from shardproof.verify.report.formats.junit import reports_junit
from shardproof.verify.report.formats.sarif import reports_sarif
from shardproof.verify.report.formats.text import finding_text, known_text, report_text, verdict_sentence
from shardproof.verify.report.report import Report

if TYPE_CHECKING:
    from torch import nn

    from shardproof.verify.report.drawing import Picture
    from shardproof.verify.report.picture import Cut


@dataclass(frozen=True, slots=True)
class Drawing:
    """What the HTML page draws beside the findings: a plan on a meta model, and its groups of dims, found only for the page."""

    model: "nn.Module"
    plan: Plan
    tp: int
    pp: int
    groups: Callable[[], Explanation | None]


def format_case(case: CaseReport, form: ReportFormat, *, drawing: Drawing) -> str:
    """The text for stdout of one model alone."""
    report = case.report
    assert report is not None, "an error is told on stderr"
    match form:
        case ReportFormat.JSON:
            return case_json(case)
        case ReportFormat.SARIF:
            return reports_sarif([case])
        case ReportFormat.JUNIT:
            return reports_junit([case])
        case ReportFormat.GITHUB:
            return reports_github([case])
        case ReportFormat.HTML:
            drawn = _drawn(drawing)
            groups = drawing.groups() if drawn else None
            return report_html(report, drawn, layout=case.asked, excerpt=excerpt, explanation=groups)
        case ReportFormat.TEXT:
            told = report_text(report, layout=case.asked, skipped=case.skipped, known=case.known or ())
            last = f"{report.verdict.value}: {verdict_sentence(report.verdict)}"
            return "\n\n".join(filter(None, (told, _stages(drawing), last)))


def format_report(report: Report, form: ReportFormat, *, layout: str, drawing: Drawing) -> str:
    """The text for stdout of a report at a layout in words."""
    return format_case(CaseReport(report.model, layout, 0, report), form, drawing=drawing)


def format_cases(
    cases: Sequence[CaseReport], form: ReportFormat, *, code: int, drawings: Sequence[Drawing | None] = ()
) -> str:
    """The text for stdout of several models; `drawings` are what an HTML page draws of each, None where there is no report."""
    match form:
        case ReportFormat.JSON:
            return cases_json(cases, code=code)
        case ReportFormat.SARIF:
            return reports_sarif(cases)
        case ReportFormat.JUNIT:
            return reports_junit(cases)
        case ReportFormat.GITHUB:
            return reports_github(cases)
        case ReportFormat.HTML:
            drawn = [_drawn(drawing) if drawing else None for drawing in drawings or [None] * len(cases)]
            return reports_html(cases, drawn, excerpt=excerpt)
        case ReportFormat.TEXT:
            blocks = [_table(cases), *filter(None, map(_details, cases)), _counted(cases)]
            return "\n\n".join(blocks)


def _table(cases: Sequence[CaseReport]) -> str:
    heads = ("model", "at", "verdict", "findings", "seconds")
    rows = [
        (case.model, case.asked, case.verdict, _findings(case), f"{_seconds(case):.1f} s" if case.report else "")
        for case in cases
    ]
    cells = [[one_line(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(heads))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _findings(case: CaseReport) -> str:
    known = len(case.findings) - len(case.fresh)
    return f"{len(case.fresh)}{f' and {known} known' if known else ''}" if case.report is not None else ""


def _seconds(case: CaseReport) -> float:
    return sum(level.seconds for level in case.report.levels) if case.report is not None else 0.0


def _details(case: CaseReport) -> str:
    """The findings of one model, those of a baseline in one line each; empty where there are none."""
    head = f"{one_line(case.model)} at {case.asked}"
    if case.report is None:
        return f"{head}: {one_line(case.error)}"
    told = [*map(finding_text, case.fresh), known_text(case.old)]
    return "\n\n".join([head, *filter(None, told)]) if any(told) else ""


def _counted(cases: Sequence[CaseReport]) -> str:
    """`10 in all: 8 proved, 1 refuted, 1 no report`."""
    have = Counter(case.verdict for case in cases)
    return f"{len(cases)} in all: {', '.join(f'{count} {verdict}' for verdict, count in have.most_common())}"


def _drawn(drawing: Drawing) -> "Picture | None":
    from shardproof.planner.tracing.recorded_run import TraceError
    from shardproof.verify.report.picture import picture

    try:
        return picture(drawing.model, drawing.plan, tp=drawing.tp, pp=drawing.pp, cut=balanced(drawing.pp))
    except TraceError:
        return None


def _stages(drawing: Drawing) -> str:
    """The stages of a pipeline plan, balanced by the bytes of their parameters, and what an even split would come to."""
    from shardproof.planner.tracing.recorded_run import TraceError
    from shardproof.verify.report.picture import stages_of

    if drawing.pp < 2 or not drawing.plan.pp:
        return ""
    try:
        found, even = (
            stages_of(drawing.model, drawing.plan, tp=drawing.tp, pp=drawing.pp, cut=cut)
            for cut in (balanced(drawing.pp), None)
        )
    except TraceError:
        return ""
    if len(found) != drawing.pp:
        return ""
    most, otherwise = (max(stage.size for stage in stages) for stages in (found, even))
    width = max(len(stage.layers) for stage in found)
    lines = [
        f"{'  stages  ' if at == 0 else ' ' * 10}{stage.layers:<{width}}  {format_bytes(stage.size)}"
        for at, stage in enumerate(found)
    ]
    return "\n".join(
        [*lines, f"{' ' * 10}{'the fullest':<{width}}  {format_bytes(most)}; split evenly {format_bytes(otherwise)}"]
    )


def balanced(stages: int) -> "Cut":
    """A cut into stages that minimises the parameter bytes of the largest stage; equal numbers of layers if there are fewer
    than stages.
    """
    from shardproof.planner.layouts.balance import Costs, balance

    def cut(layers: Sequence[int], before: int, after: int) -> Sequence[int]:
        if len(layers) < stages:
            return [number * len(layers) // stages for number in range(1, stages)]
        return balance(Costs(tuple(layers), before, after), stages=stages).bounds

    return cut
