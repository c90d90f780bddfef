"""Reports as SARIF 2.1.0 (Static Analysis Results Interchange Format, OASIS), as code-scanning services read it.

Every result has a physical location: GitHub refuses a file with a result that has none. The plan entry and the module are logical
locations. Paths are relative, and nothing about the machine is in it. The limits are GitHub's
(docs.github.com, "SARIF results exceed limits", 2025): 25,000 results a run, of which the 5,000 worst are shown, 20 tags a rule.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import quote

from shardproof.planner.ir.findings import Finding, Severity, Source
from shardproof.verify.findings.catalogue import Rule, rules
from shardproof.verify.report.case_report import NOWHERE, CaseReport, Locate, source_of
from shardproof.verify.report.formats.text import finding_text
from shardproof.verify.report.report import Report

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MOST_RESULTS = 5000
"""The results of a run that GitHub shows; the worst come first."""
_LONGEST = 1000
"""Characters of a rule's description that GitHub shows."""
_LEVELS = {Severity.ERROR: "error", Severity.UNDECIDED: "warning", Severity.WARNING: "note"}


def report_sarif(report: Report, *, locate: Locate = source_of) -> str:
    """One run of one tool."""
    return reports_sarif([CaseReport(report.model, "", 0, report, locate=locate)])


def reports_sarif(cases: Sequence[CaseReport]) -> str:
    """Several reports as one run: GitHub takes one run of a tool and category. The worst results come first."""
    found = [(finding, case, number) for case in cases for number, finding in enumerate(case.findings)]
    found.sort(key=lambda each: list(_LEVELS).index(each[0].severity))
    codes = list(dict.fromkeys(finding.code for finding, _, _ in found[:MOST_RESULTS]))
    reports = [case.report for case in cases if case.report is not None]
    environment = dict(reports[0].environment) if reports else {}
    driver = {
        "name": "shardproof",
        "version": environment.get("shardproof", "unknown"),
        "rules": [_rule(rules()[code]) if code in rules() else {"id": code} for code in codes],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(cases)],
        "results": [
            _result(finding, codes.index(finding.code), case, number) for finding, case, number in found[:MOST_RESULTS]
        ],
        "properties": {**_properties(reports), "environment": environment},
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False)


def _invocation(cases: Sequence[CaseReport]) -> dict[str, object]:
    """A model that has no report is an error of the tool's run: it is no result, since nothing is known of the model."""
    failed = [
        {"level": "error", "message": {"text": f"{case.model}, {case.asked}: {case.error}"}}
        for case in cases
        if case.report is None
    ]
    return {"executionSuccessful": not failed, **({"toolExecutionNotifications": failed} if failed else {})}


def _properties(reports: Sequence[Report]) -> dict[str, object]:
    told: list[dict[str, object]] = [
        {
            "model": report.model,
            "verdict": report.verdict.value,
            "levels": {level.level: level.verdict.value for level in report.levels},
        }
        for report in reports
    ]
    return told[0] if len(told) == 1 else {"models": told}


def _rule(rule: Rule) -> dict[str, object]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.name.replace("-", " ")},
        "fullDescription": {"text": rule.what[:_LONGEST]},
        "help": {"text": f"{rule.why}\n\nUse instead: {rule.use_instead}"},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
        "properties": {"tags": [rule.family]},
    }


def _result(finding: Finding, index: int, case: CaseReport, number: int) -> dict[str, object]:
    place, where, model = finding.place, case.locate(finding), case.model
    location: dict[str, object] = {"physicalLocation": _physical(where)}
    logical = [("module", place.module), ("member", place.entry)]
    if any(name for _, name in logical):
        location["logicalLocations"] = [{"kind": kind, "fullyQualifiedName": name} for kind, name in logical if name]
    result: dict[str, object] = {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": finding_text(finding)},
        "locations": [location],
        "partialFingerprints": {
            "primaryLocationLineHash": f"{_digest(finding.code, model, place.entry, place.module)[:16]}:1",
            "finding/v1": _digest(finding.code, place.entry, place.module, finding.message),
        },
        "properties": {"fault": finding.fault.value, "model": model},
    }
    if case.known is not None:
        result["baselineState"] = "unchanged" if number in case.known else "new"
    if place.source is not None and place.source.line != where.line:
        code = {
            "id": 1,
            "physicalLocation": _physical(place.source),
            "message": {"text": "the line of the model's code"},
        }
        result["relatedLocations"] = [code]
    return result


def _physical(source: Source) -> dict[str, object]:
    """A location by a relative address: of an absolute path only the name, since no path of this machine is told."""
    path = PurePosixPath(source.file or NOWHERE.file)
    relative = path.name if path.is_absolute() or ".." in path.parts else path.as_posix()
    address = quote(relative.encode(errors="backslashreplace"))
    return {"artifactLocation": {"uri": address}, "region": {"startLine": max(source.line, 1)}}


def _digest(*parts: str | None) -> str:
    return hashlib.sha256("\0".join(part or "" for part in parts).encode(errors="backslashreplace")).hexdigest()
