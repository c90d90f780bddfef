"""Reports and suggestions as JSON. These objects are an interface: keys are added, never renamed or removed."""

import json
from collections.abc import Sequence

from shardproof.planner.ir.degrees import Degrees, spans
from shardproof.planner.ir.findings import Finding, Fix
from shardproof.planner.transformers_facts.version import is_tested
from shardproof.verify.findings.catalogue import name_of
from shardproof.verify.report.case_report import CaseReport
from shardproof.verify.report.difference import Backed, Difference
from shardproof.verify.report.environment import environment, started_from
from shardproof.verify.report.formats.client_readings import everywhere_json
from shardproof.verify.report.formats.explanation import explanation_json
from shardproof.verify.report.formats.private import public, public_finding
from shardproof.verify.report.report import LevelResult, Report
from shardproof.verify.report.scope import Scope
from shardproof.verify.report.suggestion import Suggested


def report_json(report: Report) -> str:
    """What `plan verify --format json` prints."""
    return case_json(CaseReport(report.model, "", 0, report))


def case_json(case: CaseReport) -> str:
    """The report of one model alone; with a baseline, `known` says of each finding whether the baseline holds it."""
    assert case.report is not None, "an error is told on stderr"
    return _text(_report(case.report, case.known))


def cases_json(cases: Sequence[CaseReport], *, code: int) -> str:
    """What several models print: `reports`, each with `model`, `asked`, `exit_code` and `error` (null with a report)."""
    told = []
    for case in cases:
        about = {"model": case.model, "asked": case.asked, "exit_code": case.code, "error": case.error or None}
        told.append(about | (_report(case.report, case.known) if case.report is not None else {}))
    return _text({"exit_code": code, "reports": told, "environment": environment()})


def _report(report: Report, known: frozenset[int] | None) -> dict[str, object]:
    findings = [finding_json(finding) for finding in report.findings]
    if known is not None:
        for number, told in enumerate(findings):
            told["known"] = number in known
    return {
        "verdict": report.verdict.value,
        "levels": {level.level: _level(level) for level in report.levels},
        "findings": findings,
        "environment": _environment(report),
        "degrees": list(report.degrees.legal) if report.degrees else None,
        "forbidden": _forbidden(report.degrees) if report.degrees else None,
        **_shares(report),
    }


def _environment(report: Report) -> dict[str, object]:
    tested = is_tested(report.environment.get("transformers", ""))
    before = started_from()
    return {**report.environment, "tested": tested, **({"started_from": before} if before else {})}


def _shares(report: Report) -> dict[str, object]:
    return {} if report.shares is None else {"shares": report.shares.to_json()}


def suggestion_json(suggested: Suggested) -> str:
    """What `plan suggest --format json` prints; `plan verify --plan` reads it."""
    compared = {} if suggested.differences is None else {"differences": list(map(_difference, suggested.differences))}
    return _text(
        {
            "model": suggested.model,
            "plan": suggested.plan.to_json(),
            "degrees": list(suggested.degrees.legal),
            "forbidden": _forbidden(suggested.degrees),
            "verdict": suggested.report.verdict.value,
            "findings": [finding_json(finding) for finding in suggested.report.findings],
            "unplanned": dict(suggested.plan.unplanned),
            "sharded_fraction": round(suggested.sharded_fraction, 6),
            **_shares(suggested.report),
            **(everywhere_json(suggested.everywhere) if suggested.everywhere is not None else {}),
            **(explanation_json(suggested.explanation) if suggested.explanation is not None else {}),
        }
        | compared
    )


def finding_json(finding: Finding) -> dict[str, object]:
    """One finding: `entry`, `module`, `source` and `fix` are null where they are not known."""
    finding = public_finding(finding)
    return {
        "code": finding.code,
        "name": name_of(finding.code),
        "severity": finding.severity.value,
        "message": finding.message,
        "entry": finding.place.entry,
        "module": finding.place.module,
        "source": str(finding.place.source) if finding.place.source else None,
        "why": finding.why,
        "found": finding.found,
        "needed": finding.needed,
        "fault": finding.fault.value,
        "fix": _fix(finding.fix) if finding.fix else None,
    }


def _forbidden(degrees: Degrees) -> list[dict[str, object]]:
    """What forbids the degrees that are not legal: `degrees` as spans, such as `3, 5-7`; `size` is null for a fault."""
    return [
        {
            "degrees": spans(against),
            "entry": limit.place.entry,
            "module": limit.place.module,
            "source": str(limit.place.source) if limit.place.source else None,
            "size": limit.size,
            "reason": public(limit.reason),
        }
        for limit, against in degrees.limits
    ]


def _difference(difference: Difference) -> dict[str, object]:
    return {
        "attribute": difference.attribute,
        "key": difference.key,
        "own": difference.first,
        "suggested": difference.second,
        "backed": _BACKED[difference.backed],
        "codes": list(difference.codes),
    }


_BACKED = {
    Backed.BOTH: "both",
    Backed.FIRST: "own",
    Backed.SECOND: "suggested",
    Backed.TOGETHER: "neither alone",
    Backed.OPEN: "not decided",
}


def _fix(fix: Fix) -> dict[str, object]:
    return {
        "title": fix.title,
        "edits": [{"pattern": edit.pattern, "old": edit.old, "new": edit.new} for edit in fix.edits],
        "safety": fix.safety,
    }


def _level(level: LevelResult) -> dict[str, object]:
    """One level; `scope` is what a proof covers, `answers` what training questions were answered with."""
    found: dict[str, object] = {"verdict": level.verdict.value, "seconds": round(level.seconds, 3)}
    if level.answers:
        found["answers"] = dict(level.answers)
    return found if level.scope is None else found | {"scope": _scope(level.scope)}


def _scope(scope: Scope) -> dict[str, object]:
    return {
        "modes": list(scope.modes),
        "stages": list(scope.stages),
        "branches": list(scope.branches),
        "layers": len(scope.layers),
        "same": len(scope.same),
        "assumptions": [public(one) for one in scope.assumptions],
        **({"asked": list(scope.asked)} if scope.asked else {}),
    }


def _text(value: object) -> str:
    # allow_nan=False: `NaN` is not JSON, so it is an error here and not in the reader.
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
