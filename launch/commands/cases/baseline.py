"""A baseline: findings that are known, and neither fail again nor hide a new one."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shardproof.launch.result import MisuseError
from shardproof.planner.ir.findings import Severity
from shardproof.planner.loading.json_file import JsonFileError, read_json
from shardproof.verify.report.case_report import CaseReport
from shardproof.verify.report.formats.private import public
from shardproof.verify.report.report import LevelResult

FORM = 1
"""The form of the file; a later form gets another number."""
_CODES = {Severity.ERROR: 1, Severity.UNDECIDED: 3, Severity.WARNING: 0, None: 0}
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_FIELDS = ("model", "asked", "level", "code", "severity", "entry", "module", "message")


@dataclass(frozen=True, slots=True)
class Baseline:
    """How often each finding is known, by its fields. Numbers in messages are left out: measured errors differ a little."""

    counts: Counter[tuple[str, ...]]

    def applied(self, case: CaseReport) -> CaseReport:
        """The case with its known findings, and with the exit code of the others; its verdict stays what it is."""
        if case.report is None:
            return replace(case, known=frozenset())
        left, known = Counter(self.counts), set[int]()
        for number, identity in enumerate(_identities(case)):
            if left[identity] > 0:
                left[identity] -= 1
                known.add(number)
        judged = replace(case, known=frozenset(known))
        return replace(judged, code=_CODES[judged.worst]) if known else judged

    def gone(self, cases: Iterable[CaseReport]) -> int:
        """How many known findings of these models were not found again."""
        found = Counter(identity for case in cases for identity in _identities(case))
        ran = {_ran(case, level) for case in cases if case.report is not None for level in case.report.levels}
        return sum((count for identity, count in (self.counts - found).items() if identity[:3] in ran), 0)


def read_baseline(path: Path) -> Baseline:
    """The baseline in a file.

    Raises:
        MisuseError: there is no such file, or it is none that `--write-baseline` wrote.
    """
    advice = f"write it with --write-baseline {path}"
    try:
        found = read_json(path)
    except FileNotFoundError as error:
        raise MisuseError(f"{path}: there is no such baseline; {advice}.") from error
    except JsonFileError as error:
        raise MisuseError(f"{path}: this baseline {error}; {advice}.") from error
    entries = found.get("findings") if isinstance(found, dict) and found.get("baseline") == FORM else None
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise MisuseError(f"{path}: this is no baseline of this version; {advice}.")
    return Baseline(Counter(tuple(str(each.get(name, "")) for name in _FIELDS) for each in entries))


def baseline_text(cases: Sequence[CaseReport]) -> str:
    """The file with every finding of these cases."""
    entries = [dict(zip(_FIELDS, identity, strict=True)) for case in cases for identity in _identities(case)]
    entries.sort(key=lambda entry: tuple(entry.values()))
    return json.dumps({"baseline": FORM, "findings": entries}, indent=1, ensure_ascii=False) + "\n"


def _ran(case: CaseReport, level: LevelResult) -> tuple[str, str, str]:
    """The model, the layout and the level; a contract has no layout, and its level names the client."""
    return case.model, "" if level.level.startswith("contract") else case.asked, level.level


def _identities(case: CaseReport) -> Iterable[tuple[str, ...]]:
    for level in case.report.levels if case.report is not None else ():
        for finding in level.findings:
            place, message = finding.place, _NUMBER.sub("#", public(finding.message))
            yield (
                *_ran(case, level),
                finding.code,
                finding.severity.value,
                place.entry or "",
                place.module or "",
                message,
            )
