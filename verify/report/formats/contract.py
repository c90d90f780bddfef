"""The result of `plan check` as text and as HTML: a line for each client, and every finding once with the clients that it is
for.
"""

from collections.abc import Iterator
from dataclasses import replace

from shardproof.planner.ir.findings import Finding, Place
from shardproof.verify.report.formats.html import Excerpt, finding_blocks, render
from shardproof.verify.report.formats.text import finding_text
from shardproof.verify.report.report import LevelResult, Report


def contract_text(report: Report, shown: Report | None = None) -> str:
    """For a terminal: a count of findings for each client, and the findings of `shown`, by default all of them."""
    lines = [f"  {client:<20} {count}" for client, count in _counts(report)]
    blocks = [
        f"{finding_text(finding)}\n{'clients':>10}  {', '.join(names)}" for finding, names in _shared(shown or report)
    ]
    return "\n\n".join([f"{report.model}\n" + "\n".join(lines), *blocks])


def contract_html(report: Report, *, excerpt: Excerpt) -> str:
    """One self-contained page."""
    return render(
        "contract.html.jinja",
        title=f"{report.model} and its clients",
        report=report,
        counts=list(_counts(report)),
        findings=finding_blocks(named_once(report).findings, excerpt),
    )


def named_once(report: Report) -> Report:
    """The same findings, each under its first client and with the names of all."""
    names = {_what(finding): clients for finding, clients in _shared(report)}
    levels = []
    for level in report.levels:
        mine = [(one, names.pop(_what(one), None)) for one in level.findings]
        kept = tuple(replace(one, message=f"{one.message} ({', '.join(of)})") for one, of in mine if of)
        levels.append(replace(level, findings=kept))
    return replace(report, levels=tuple(levels))


def _shared(report: Report) -> Iterator[tuple[Finding, list[str]]]:
    """Findings with the same code, message and place are one; clients may have different reasons, and the first is shown."""
    clients: dict[tuple[str, str, Place], tuple[Finding, list[str]]] = {}
    for level in report.levels:
        for finding in level.findings:
            clients.setdefault(_what(finding), (finding, []))[1].append(_client(level))
    yield from clients.values()


def _what(finding: Finding) -> tuple[str, str, Place]:
    return finding.code, finding.message, finding.place


def _counts(report: Report) -> Iterator[tuple[str, str]]:
    for level in report.levels:
        number = len(level.findings)
        yield _client(level), "nothing found" if not number else f"{number} finding{'s' if number > 1 else ''}"


def _client(level: LevelResult) -> str:
    return level.level.removeprefix("contract with ")
