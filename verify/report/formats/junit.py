"""Reports as JUnit XML, as CI services read it: a test case for each level of each model."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.ir.readable_text import visible
from shardproof.verify.report.case_report import CaseReport
from shardproof.verify.report.formats.text import finding_text
from shardproof.verify.report.report import LevelResult


def reports_junit(cases: Sequence[CaseReport]) -> str:
    """A level with errors has failed; one that is not decided, and a model without a report, is an error of the test.

    Findings that a baseline holds are told in the output of the test case, and fail nothing.
    """
    suite = Element("testsuite", name="shardproof")
    for case in cases:
        if case.report is None:
            made = SubElement(suite, "testcase", classname=_text(case.model), name=_text(case.asked), time="0")
            SubElement(made, "error", type="no report", message=_text(case.error)).text = _text(case.error)
        else:
            for level, fresh in zip(case.report.levels, case.unknown.levels, strict=True):
                _level(suite, case, level, fresh.findings)
    every = list(suite)
    suite.set("tests", str(len(every)))
    for kind in ("failure", "error"):
        suite.set(f"{kind}s", str(sum(each.find(kind) is not None for each in every)))
    whole = Element("testsuites")
    whole.append(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(whole, encoding="unicode")


def _level(suite: Element, case: CaseReport, level: LevelResult, fresh: Sequence[Finding]) -> None:
    name = f"{level.level} at {case.asked}" if case.asked else level.level
    made = SubElement(
        suite, "testcase", classname=_text(case.model), name=_text(name), time=f"{max(level.seconds, 0.0):.3f}"
    )
    errors = [finding for finding in fresh if finding.severity is Severity.ERROR]
    undecided = [finding for finding in fresh if finding.severity is Severity.UNDECIDED]
    for kind, found in (("failure", errors), ("error", [] if errors else undecided)):
        if found:
            _told(SubElement(made, kind, type=found[0].code, message=_text(found[0].message)), found)
    failing = errors or undecided
    others = [finding for finding in level.findings if finding not in failing]
    if others:
        _told(SubElement(made, "system-out"), others)


def _told(element: Element, found: Sequence[Finding]) -> None:
    element.text = _text("\n\n".join(map(finding_text, found)))


def _text(text: str) -> str:
    """XML has no control characters, and no way to write them; it escapes the rest by itself."""
    return visible(text).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
