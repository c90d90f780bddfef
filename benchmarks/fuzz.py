"""`python -m benchmarks fuzz --pairs N --seed S`: random models and plans, the proof against real arithmetic of ranks as threads.

`benchmarks.fuzz_models` draws a model and plans for it. Every plan is proved, and run in float64: evaluation, padding masks,
training with gradients, cached decoding. If the proof says `proved` and the ranks differ, that is a false proof; if it says
`refuted` and they agree, a false accusation. A failure is shrunk: parts, steps and entries are left out as long as it stays one.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from unittest.mock import patch

from rich.console import Console
from rich.progress import track

from benchmarks.fuzz_models import MODEL, FuzzCase, FuzzPlan, drawn
from shardproof.planner.ir.findings import Finding, Severity, Verdict
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.verify.proof.prove import prove
from shardproof.verify.report.report import LevelResult
from shardproof.verify.run.inprocess import InProcess
from shardproof.verify.run.verdicts import findings_of
from shardproof.verify.stages.case import Case

LIMIT = 60.0
"""Seconds for the ranks of one plan."""


class FuzzRanks(AbstractContextManager["FuzzRanks"]):
    """Ranks as threads, started once for every degree."""

    def __init__(self) -> None:
        self._started: dict[int, InProcess] = {}

    def __exit__(self, *_: object) -> None:
        for ranks in self._started.values():
            ranks.__exit__()
        self._started.clear()

    def verdict(self, model: LoadedModel, given: FuzzPlan) -> tuple[str, tuple[Finding, ...]]:
        """What the ranks say of one plan: a verdict, or `not decided`."""
        degree = given.tp * given.pp
        if degree not in self._started:
            self._started[degree] = InProcess(degree).__enter__()
        case = Case(model, given.plan, given.tp, given.pp, given.ep)
        try:
            outcomes = self._started[degree].check(case, hasty=True, timeout=LIMIT)
        except TimeoutError:
            with suppress(Exception):
                self._started.pop(degree).__exit__()
            return "not decided", ()
        findings = findings_of(case, outcomes)
        found = LevelResult("run", 0.0, findings)
        unasked = any("training" in outcome.unasked for outcome in outcomes.values())
        undecided = any(finding.severity is Severity.UNDECIDED for finding in findings)
        if undecided or (unasked and found.verdict is Verdict.CONFIRMED):
            return "not decided", findings
        return found.verdict.value, findings


def verdicts(case: FuzzCase, ranks: FuzzRanks) -> Iterator[tuple[FuzzPlan, str, str]]:
    """What came of every plan of a case, and what was said: `false proof`, `false accusation`, `crash: ...`, or both verdicts,
    which do not contradict each other.
    """
    model = load(MODEL, overrides=dict(case.parts))
    # A fix changes no verdict, and looking for one takes most of the time of a refutation.
    with patch("shardproof.verify.proof.modes.with_fix", lambda *given: given[-1]):
        for given in case.plans:
            try:
                proof = prove(model, given.plan, tp=given.tp, pp=given.pp, ep=given.ep)
                ran, findings = ranks.verdict(model, given)
            except Exception as error:  # an exception of ours is a failure too
                yield given, f"crash: {type(error).__name__}", str(error)
                continue
            said = " | ".join(f"{one.code} {one.message}" for one in (*proof.findings[:2], *findings[:2]))
            yield given, _both(proof.verdict.value, ran), said


def _both(proved: str, ran: str) -> str:
    if (proved, ran) == (Verdict.PROVED.value, Verdict.REFUTED.value):
        return "false proof"
    if (proved, ran) == (Verdict.REFUTED.value, Verdict.CONFIRMED.value):
        return "false accusation"
    return f"{proved}, {ran}"


def judged(case: FuzzCase, ranks: FuzzRanks | None = None) -> str:
    """What came of the first plan that is a failure, else of the first plan."""
    if ranks is None:
        with FuzzRanks() as ranks:
            return judged(case, ranks)
    found = [came for _, came, _ in verdicts(case, ranks)]
    return next(filter(is_failure, found), found[0])


def is_failure(found: str) -> bool:
    """Whether what came of a plan is a fault of ours."""
    return found.startswith(("false", "crash"))


def shrunk(case: FuzzCase, wrong: str, ranks: FuzzRanks) -> FuzzCase:
    """The case with as few parts, steps and entries as fail in the same way."""
    for less in case.smaller:
        if judged(less, ranks) == wrong:
            return shrunk(less, wrong, ranks)
    return case


def main(pairs: int, chance: int, path: Path) -> int:
    """Try the pairs, print the counts by kind of plan, and write the failures; 1 if there is one."""
    console, failures, began = Console(), list[dict[str, str]](), monotonic()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("tensor", "experts", "stages")}
    known: set[str] = set()
    with FuzzRanks() as ranks:
        for case in track(drawn(pairs, chance), total=None, description="models", console=Console(stderr=True)):
            for given, came, said in verdicts(case, ranks):
                counts[_kind(given)][came] += 1
                if not is_failure(came):
                    continue
                small = shrunk(replace(case, plans=(given,)), came, ranks)
                if str(small) not in known:
                    known.add(str(small))
                    failures.append({"failure": came, "case": str(small), "said": said})
                    console.print(came, str(small), said, soft_wrap=True)
            done = {"pairs": sum(map(Counter.total, counts.values())), "seed": chance, "counts": counts}
            path.write_text(json.dumps({**done, "seconds": monotonic() - began, "failures": failures}, indent=2))
    console.print({kind: dict(found) for kind, found in counts.items()})
    return 1 if failures else 0


def _kind(given: FuzzPlan) -> str:
    return "stages" if given.pp > 1 else "experts" if given.ep > 1 else "tensor"
