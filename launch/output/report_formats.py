"""A verification report as text, JSON, SARIF or HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardproof.launch.output.source_excerpts import excerpt, relative_path
from shardproof.launch.result import ReportFormat
from shardproof.planner.ir.byte_sizes import format_bytes
from shardproof.planner.ir.explanation import Explanation
from shardproof.planner.ir.plan import Plan
from shardproof.verify.report.formats.html import report_html
from shardproof.verify.report.formats.json import report_json
from shardproof.verify.report.formats.sarif import report_sarif
from shardproof.verify.report.formats.text import report_text, verdict_sentence
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


def format_report(
    report: Report,
    form: ReportFormat,
    *,
    layout: str,
    drawing: Drawing,
    plan_file: str | None = None,
    skipped: str = "",
) -> str:
    """The text for stdout; `plan_file` is where SARIF shows a finding without a source line."""
    match form:
        case ReportFormat.JSON:
            return report_json(report)
        case ReportFormat.SARIF:
            return report_sarif(report, relative_path=relative_path, plan_file=plan_file)
        case ReportFormat.HTML:
            drawn = _drawn(drawing)
            groups = drawing.groups() if drawn else None
            return report_html(report, drawn, layout=layout, excerpt=excerpt, explanation=groups)
        case ReportFormat.TEXT:
            text = "\n\n".join(filter(None, (report_text(report, layout=layout, skipped=skipped), _stages(drawing))))
            return f"{text}\n\n{report.verdict.value}: {verdict_sentence(report.verdict)}"


def _drawn(drawing: Drawing) -> "Picture | None":
    from shardproof.planner.tracing.trace import TraceError
    from shardproof.verify.report.picture import picture

    try:
        return picture(drawing.model, drawing.plan, tp=drawing.tp, pp=drawing.pp, cut=balanced(drawing.pp))
    except TraceError:
        return None


def _stages(drawing: Drawing) -> str:
    """The stages of a pipeline plan, balanced by the bytes of their parameters, and what an even split would come to."""
    from shardproof.planner.tracing.trace import TraceError
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
