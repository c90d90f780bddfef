"""A report as SARIF 2.1.0 (Static Analysis Results Interchange Format, OASIS), as code-scanning services read it.

A finding's source line is its physical location; its plan entry and module are logical locations. Paths are relative, and
nothing about the machine is in it.
"""

import hashlib
import json
from collections.abc import Callable

from shardproof.planner.ir.findings import Finding, Severity
from shardproof.verify.findings.catalogue import Rule, rules
from shardproof.verify.report.formats.text import finding_text
from shardproof.verify.report.report import Report

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Severity.ERROR: "error", Severity.UNDECIDED: "warning", Severity.WARNING: "note"}


def report_sarif(report: Report, *, relative_path: Callable[[str], str] = str, plan_file: str | None = None) -> str:
    """One run of one tool.

    `relative_path` gives a source file's path relative to the folder of the reader's repository; a finding without a source line
    is shown in `plan_file`.
    """
    found = report.findings
    codes = list(dict.fromkeys(finding.code for finding in found))
    driver = {
        "name": "shardproof",
        "version": report.environment.get("shardproof", "unknown"),
        "rules": [_rule(rules()[code]) if code in rules() else {"id": code} for code in codes],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": True}],
        "results": [_result(finding, codes.index(finding.code), relative_path, plan_file) for finding in found],
        "properties": {
            "model": report.model,
            "verdict": report.verdict.value,
            "levels": {level.level: level.verdict.value for level in report.levels},
            "environment": dict(report.environment),
        },
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False)


def _rule(rule: Rule) -> dict[str, object]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.name.replace("-", " ")},
        "fullDescription": {"text": rule.what},
        "help": {"text": f"{rule.why}\n\nUse instead: {rule.use_instead}"},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
        "properties": {"tags": [rule.family]},
    }


def _result(
    finding: Finding, index: int, relative_path: Callable[[str], str], plan_file: str | None
) -> dict[str, object]:
    place = finding.place
    location: dict[str, object] = {}
    if place.source is not None:
        location["physicalLocation"] = {
            "artifactLocation": {"uri": relative_path(place.source.file)},
            "region": {"startLine": max(place.source.line, 1)},
        }
    elif plan_file is not None:
        location["physicalLocation"] = {"artifactLocation": {"uri": plan_file}, "region": {"startLine": 1}}
    logical = [("module", place.module), ("member", place.entry)]
    if any(name for _, name in logical):
        location["logicalLocations"] = [{"kind": kind, "fullyQualifiedName": name} for kind, name in logical if name]
    identity = "\0".join((finding.code, place.entry or "", place.module or "", finding.message))
    return {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": finding_text(finding)},
        "locations": [location] if location else [],
        "partialFingerprints": {"finding/v1": hashlib.sha256(identity.encode(errors="backslashreplace")).hexdigest()},
        "properties": {"fault": finding.fault.value},
    }
