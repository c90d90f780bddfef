"""A report as text for a reader: the verdict, one line for each level, and each finding in five parts."""

import math
from collections.abc import Collection, Mapping
from textwrap import TextWrapper

from shardproof.planner.ir.findings import Fault, Finding, Severity, Verdict
from shardproof.planner.ir.readable_text import one_line
from shardproof.verify.findings.catalogue import rules
from shardproof.verify.report.formats.private import public, public_finding
from shardproof.verify.report.report import LevelResult, Report
from shardproof.verify.report.scope import Scope

_WIDTH = 100
_LABEL = 10


def report_text(report: Report, *, layout: str, skipped: str = "", known: Collection[int] = ()) -> str:
    """The whole report.

    `layout` is the degrees in words, `skipped` a line about a level that did not run. The findings with the numbers `known`,
    those of a baseline, are told in one line each.
    """
    head = f"{report.model} at {layout}: {report.verdict}"
    levels = "\n".join(_level(level) for level in report.levels) + (f"\n  {skipped}" if skipped else "")
    degrees = (
        _part("degrees", public("\n".join(report.degrees.clauses())))
        if report.degrees and len(report.degrees.legal) > 1
        else ""
    )
    fresh = (finding_text(finding) for number, finding in enumerate(report.findings) if number not in known)
    blocks = [
        head,
        levels,
        _saved(report),
        degrees,
        *fresh,
        known_text([report.findings[number] for number in sorted(known)]),
    ]
    return "\n\n".join(filter(None, blocks))


def _saved(report: Report) -> str:
    """What the plan saves, after what it does not save."""
    if report.shares is None:
        return ""
    told = (("warning", report.shares.warning), ("split", report.shares.sentence))
    return "\n".join(_part(label, text) for label, text in told if text)


def _level(level: LevelResult) -> str:
    worst = max(level.measures.items(), key=lambda item: item[1], default=None)
    far = f"   largest relative error {worst[1]:.1e} ({worst[0]})" if worst and math.isfinite(worst[1]) else ""
    line = f"  {level.level:<6} {level.verdict.value:<10} {level.seconds:7.1f} s{far}"
    below = [*([_scope(level.scope)] if level.scope else []), *_answers(level.answers)]
    return "\n".join([line, *below])


def _answers(answers: Mapping[str, str]) -> list[str]:
    """Each question of a level with its answer."""
    widest = max(map(len, answers), default=0)
    room = TextWrapper(_WIDTH, break_long_words=False, break_on_hyphens=False)
    room.subsequent_indent = " " * (11 + widest)
    return [room.fill(f"  {'':<6} {question:<{widest}}  {words}") for question, words in answers.items()]


def _scope(scope: Scope) -> str:
    """What a proof covers, and its assumptions, one a line."""
    return "\n".join(
        f"  {'':<6} {line}" for line in (scope.sentence(), *(f"assumes {one}" for one in scope.assumptions))
    )


def known_text(known: Collection[Finding]) -> str:
    """The findings of a baseline, one a line; empty where there are none."""
    lines = [one_line(f"{finding.code} {finding.place}: {public(finding.message)}")[:_WIDTH] for finding in known]
    return "\n".join(["known, by the baseline", *(f"  {line}" for line in lines)]) if lines else ""


def finding_text(finding: Finding) -> str:
    """What, where, why, found against needed, and the next edit. Parts that a finding does not have are left out."""
    finding = public_finding(finding)
    rule = rules().get(finding.code)
    # An undecided finding (an op without a rule, a rank that was killed) is nobody's fault.
    blamed = finding.fault is not Fault.PLAN and finding.severity is not Severity.UNDECIDED
    blame = f", a fault of {_whose(finding.fault)}" if blamed else ""
    head = f"{finding.code}{f' {rule.name}' if rule else ''} ({finding.severity.value}{blame})"
    parts = [
        ("", finding.message),
        ("where", str(finding.place)),
        ("why", finding.why),
        ("found", finding.found),
        ("needed", finding.needed),
        ("next", next_edit(finding)),
    ]
    return "\n".join([head, *(_part(label, text) for label, text in parts if text)])


def next_edit(finding: Finding) -> str:
    """The edit of the plan that was tried; without one, the advice of the catalogue if the plan is at fault."""
    if finding.fix:
        return "; ".join(str(edit) for edit in finding.fix.edits) + f" ({finding.fix.safety})"
    rule = rules().get(finding.code)
    return rule.use_instead if rule and finding.fault is Fault.PLAN else f"`plan explain {finding.code}` says more"


def verdict_sentence(verdict: Verdict) -> str:
    """What a verdict means, in one clause."""
    match verdict:
        case Verdict.PROVED:
            return "for all weights, the ranks compute what one device computes"
        case Verdict.CONFIRMED:
            return "real ranks computed what one device computes"
        case Verdict.REFUTED:
            return "the plan gives a wrong result, or none"
        case Verdict.NOT_PROVED:
            return "nothing wrong was found, and not everything could be decided"


def share(fraction: float) -> str:
    """A share (0 to 1) in percent, rounded down: only 1 is written as 100 %."""
    return f"{math.floor(fraction * 1000) / 10:g} %"


def _whose(fault: Fault) -> str:
    return fault.value if fault is Fault.OURS else f"the {fault.value}"


def _part(label: str, text: str) -> str:
    """One labelled part, its lines kept, long ones wrapped under the label's column."""
    room = TextWrapper(_WIDTH, break_long_words=False, break_on_hyphens=False)
    room.subsequent_indent = " " * _LABEL if label else "  "
    lines = text.splitlines() or [""]
    shown = []
    for number, line in enumerate(lines):
        first = f"  {label:<{_LABEL - 2}}" if label and number == 0 else room.subsequent_indent
        room.initial_indent = first
        shown.append(room.fill(line) if line.strip() else "")
    return "\n".join(shown)
