"""A report as one self-contained HTML file: no script, no font, no picture from anywhere else."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shardproof.planner.ir.explanation import Explanation, Group
from shardproof.planner.ir.findings import Finding, Source
from shardproof.planner.ir.plan import generic
from shardproof.planner.ir.readable_text import format_bytes
from shardproof.verify.findings.catalogue import name_of
from shardproof.verify.report.case_report import CaseReport
from shardproof.verify.report.drawing import Box, Picture
from shardproof.verify.report.formats.private import public, public_finding
from shardproof.verify.report.formats.text import next_edit, verdict_sentence
from shardproof.verify.report.layer_picture import layer_picture, placement_mark
from shardproof.verify.report.report import Report

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

Excerpt = Callable[[Source], Sequence[tuple[int, str]]]
"""The numbered lines of source code around a line; none where the file cannot be read."""

TEMPLATES = Path(__file__).parents[1] / "templates"


@cache
def _environment() -> "Environment":
    """Every value is escaped, and a name that a template does not get is an error."""
    from jinja2 import (  # imported late: help and the other forms need no jinja2
        Environment,
        FileSystemLoader,
        StrictUndefined,
    )

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: object) -> str:
    """A page of `verify/report/templates`, filled in. Values are text, and are escaped."""
    return _environment().get_template(template).render(**values)


def report_html(
    report: Report,
    drawn: Picture | None,
    *,
    layout: str,
    excerpt: Excerpt,
    explanation: Explanation | None = None,
    plan: str = "",
) -> str:
    """The page of a report.

    Args:
        report: its verdict, levels, findings and environment.
        drawn: the plan drawn on the model; None for a model whose forward cannot be traced.
        layout: the degrees, in words.
        excerpt: gives the source lines that a finding shows.
        explanation: the groups of dims, if the page has them.
        plan: Python source, shown as it is.
    """
    body = _body(report, drawn, layout=layout, excerpt=excerpt, explanation=explanation, plan=plan)
    return render("report.html.jinja", title=f"{report.model}: {report.verdict.value}", body=body)


@dataclass(frozen=True, slots=True)
class CaseSection:
    """One of several models on a page: what was asked, what came of it, and the body of its report or an `error`."""

    model: str
    asked: str
    verdict: str
    findings: str
    body: "Markup | None" = None
    error: str = ""


def reports_html(cases: Sequence[CaseReport], drawn: Sequence[Picture | None], *, excerpt: Excerpt) -> str:
    """The page of several reports: a table of them, and a section for each.

    Args:
        cases: what was asked and found, in order.
        drawn: the plan of each, drawn on its model; None where there is none.
        excerpt: gives the source lines that a finding shows.
    """
    sections = [
        _section(case, picture, f"model-{number}-", excerpt)
        for number, (case, picture) in enumerate(zip(cases, drawn, strict=True), 1)
    ]
    made_in = next((case.report.environment for case in cases if case.report), None)
    title = f"{len(cases)} models" if len(cases) != 1 else "1 model"
    return render("reports.html.jinja", title=title, cases=sections, environment=made_in)


def _section(case: CaseReport, drawn: Picture | None, prefix: str, excerpt: Excerpt) -> CaseSection:
    known = f" and {len(case.old)} known" if case.old else ""
    found = f"{len(case.fresh)}{known}" if case.report else ""
    if case.report is None:
        return CaseSection(case.model, case.asked, case.verdict, found, error=public(case.error))
    body = _body(case.report, drawn, layout=case.asked, excerpt=excerpt, prefix=prefix, with_environment=False)
    return CaseSection(case.model, case.asked, case.verdict, found, body)


def _body(
    report: Report,
    drawn: Picture | None,
    *,
    layout: str,
    excerpt: Excerpt,
    explanation: Explanation | None = None,
    plan: str = "",
    prefix: str = "",
    with_environment: bool = True,
) -> "Markup":
    from markupsafe import Markup  # imported late, as jinja2 is

    boxes = drawn.boxes if drawn else ()
    places = [_shown_at(finding, boxes) for finding in report.findings]
    text = render(
        "report_body.html.jinja",
        prefix=prefix,
        environment=with_environment,
        report=report,
        saved=list(_saved(report)),
        degrees=list(map(public, report.degrees.clauses())) if report.degrees else [],
        layout=layout,
        sentence=verdict_sentence(report.verdict),
        levels=[(level.level, level.verdict.value, f"{level.seconds:.1f} s") for level in report.levels],
        scopes=[
            (level.scope.sentence(), tuple(map(public, level.scope.assumptions)))
            for level in report.levels
            if level.scope
        ],
        findings=finding_blocks(report.findings, excerpt, places),
        drawn=drawn,
        stages=list(_stage_bars(drawn)) if drawn else [],
        few=FEW_STAGES,
        layer=layer_picture(boxes),
        groups=list(map(_group_block, explanation.groups)) if explanation else None,
        modules=_module_tree(boxes, places) if drawn else [],
        plan=plan,
    )
    return Markup(text)  # what was rendered is escaped


FEW_STAGES = 8
"""So many stages are shown; more are folded."""


def _saved(report: Report) -> Iterator[tuple[str, str]]:
    """What the plan saves, as labels and sentences."""
    if report.shares is not None:
        told = (("warning", report.shares.warning), ("split", report.shares.sentence))
        yield from (one for one in told if one[1])


def _shown_at(finding: Finding, boxes: Sequence[Box]) -> str:
    """The path of the module of the tree that a finding is about; empty where the tree shows none."""
    shown = {generic(box.path): box.path for box in reversed(boxes) if box.path and box.repeats is None}
    module, entry = finding.place.module, finding.place.entry
    if module is not None and generic(module) in shown:
        return shown[generic(module)]
    if entry is None:
        return ""
    return next((path for key, path in reversed(shown.items()) if key == entry or key.endswith(f".{entry}")), "")


class SourceLine(str):
    """A numbered source line; `marked` where the finding is on it."""

    marked: bool

    def __new__(cls, number: int, text: str, *, marked: bool) -> "SourceLine":
        line = super().__new__(cls, f"{number:>5}  {text}")
        line.marked = marked
        return line


@dataclass(frozen=True, slots=True)
class FindingBlock:
    """A finding as a page shows it: its labelled parts, and the source lines around its place; `at` is the path of the module
    of the tree that it is about, empty where there is none.
    """

    code: str
    name: str
    severity: str
    at: str
    message: str
    parts: Sequence[tuple[str, str]]
    lines: Sequence[SourceLine]


def finding_blocks(findings: Sequence[Finding], excerpt: Excerpt, places: Sequence[str] = ()) -> list[FindingBlock]:
    """The findings without absolute paths and secrets, each with its source lines and its place in the tree of modules."""
    at = places or [""] * len(findings)
    return [
        _finding_block(public_finding(finding), excerpt, place) for finding, place in zip(findings, at, strict=True)
    ]


def _finding_block(finding: Finding, excerpt: Excerpt, at: str) -> FindingBlock:
    parts = [
        ("where", str(finding.place)),
        ("why", finding.why),
        ("found", finding.found),
        ("needed", finding.needed),
        ("next", next_edit(finding)),
    ]
    source = finding.place.source
    lines = excerpt(source) if source else ()
    marked = source.line if source else 0
    return FindingBlock(
        finding.code,
        name_of(finding.code),
        finding.severity.value,
        at,
        finding.message,
        [part for part in parts if part[1]],
        [SourceLine(number, text, marked=number == marked) for number, text in lines],
    )


@dataclass(frozen=True, slots=True)
class StageBar:
    """One pipeline stage as a bar; `percent` of the fullest stage."""

    text: str
    percent: float


def _stage_bars(drawn: Picture) -> Iterator[StageBar]:
    most = max((stage.size for stage in drawn.stages), default=0) or 1
    for number, stage in enumerate(drawn.stages):
        beside = f" with {', '.join(stage.beside)}" if stage.beside else ""
        text = f"stage {number}: {stage.layers}{beside}, {format_bytes(stage.size)} a rank"
        text = text if drawn.pp > 1 else f"one stage: {format_bytes(stage.size)} a rank"
        yield StageBar(text, 100 * stage.size / most)


@dataclass(frozen=True, slots=True)
class GroupBlock:
    """Dims that must be split together: a line, and the rows that fold out below it."""

    mark: str
    head: str
    rows: Sequence[tuple[str, Sequence[object]]]


def _group_block(group: Group) -> GroupBlock:
    """The parameters, the ops that tie them, and what forbids a split."""
    state = "can be split" if group.sharded else f"stays whole{f': {group.reason}' if group.reason else ''}"
    rows: list[tuple[str, Sequence[object]]] = [
        ("in", group.members),
        ("tied by", group.ties),
        ("minded by a style" if group.sharded else "forbidden by", group.forbids),
    ]
    count = len(group.members)
    head = f"{group.size:,} parts in {count} parameter{'' if count == 1 else 's'}; {state}"
    return GroupBlock("shard" if group.sharded else "whole", head, [row for row in rows if row[1]])


@dataclass(frozen=True, slots=True)
class ModuleBox:
    """A module as the page draws it: its name, the colour of its mark, and what is said of it; `alike` counts its repeats,
    `findings` are the numbers of those about it.
    """

    path: str
    name: str
    kind: str
    style: str
    mark: str
    held: str
    collectives: str
    alike: int
    findings: Sequence[int]
    children: Sequence["ModuleBox"]


def _module_tree(boxes: Sequence[Box], places: Sequence[str]) -> list[ModuleBox]:
    """The modules below the root, nested; layers that repeat another are only counted."""
    children: dict[str, list[Box]] = {}
    alike: dict[str, int] = {}
    for box in boxes:
        if box.path and box.repeats is None:
            children.setdefault(box.path.rpartition(".")[0], []).append(box)
        if box.repeats is not None:
            alike[box.repeats] = alike.get(box.repeats, 0) + 1
    found: dict[str, list[int]] = {}
    for number, place in enumerate(places, 1):
        found.setdefault(place, []).append(number)
    return [_module_box(box, children, alike, found) for box in children.get("", ())]


def _module_box(
    box: Box,
    children: Mapping[str, Sequence[Box]],
    alike: Mapping[str, int],
    found: Mapping[str, Sequence[int]],
) -> ModuleBox:
    placed = ", ".join(f"{name} {placement}" for name, placement in box.placements)
    whole, local = format_bytes(box.whole), format_bytes(box.local)
    sizes = f"{whole}, {local} a rank" if box.local != box.whole else whole
    return ModuleBox(
        path=box.path,
        name=box.path.rpartition(".")[2],
        kind=box.kind,
        style=box.style,
        mark=placement_mark(box),
        held=f"{placed}; {sizes}" if box.placements else "",
        collectives="; ".join(box.collectives),
        alike=alike.get(box.path, 0),
        findings=found.get(box.path, ()),
        children=[_module_box(child, children, alike, found) for child in children.get(box.path, ())],
    )
