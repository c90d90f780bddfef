"""How sharp and how sound the proof is: mutants of right plans, judged by the proof and by real ranks.

A mutant is *equivalent* where real ranks confirm it. The table counts, per operator: refuted by the proof, undecided, caught
by the run only, equivalent and proved, and the two that must be zero: false proofs (proved, and the run refutes) and false
accusations (refuted, and the run confirms).
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from launch.api import confirm_cases
from planner.api import suggest
from planner.frontend.load import Loaded, LoadError, base_prefix, build, load
from planner.frontend.trace import TraceError
from planner.frontend.twin import TwinError, twin
from planner.ir.findings import Severity
from planner.ir.plan import Plan, TpEntry
from tests.bench.types import causal_types
from tests.mutants.operators import Mutant, mutants
from verify.dynamic.cases import Case
from verify.report import LevelResult
from verify.static import prove

BATCH = 24


@dataclass(frozen=True, slots=True)
class Judged:
    """One mutant's outcome."""

    model: str
    operator: str
    entry: str
    proof: str
    run: str
    codes: tuple[str, ...]
    named: bool

    @property
    def outcome(self) -> str:
        """The class it is counted in.

        A key that matches nothing changes nothing in a run, and is wrong all the same: the client refuses it from a user.
        """
        if self.proof == "refuted" and "PL102" in self.codes:
            return "refuted"
        match self.proof, self.run:
            case "proved", "refuted":
                return "false proof"
            case "refuted", "confirmed":
                return "false accusation"
            case "refuted", _:
                return "refuted"
            case "proved", _:
                return "equivalent"
            case _:
                return "undecided"


def plan_of(styles: dict[str, str], prefix: str, like: Plan) -> Plan:
    """Styles with the head model's keys as a plan, the pipeline of another kept."""
    inside = f"{prefix}." if prefix else ""
    base = tuple(TpEntry(key.removeprefix(inside), style) for key, style in styles.items() if key.startswith(inside))
    head = tuple(TpEntry(key, style) for key, style in styles.items() if not key.startswith(inside))
    return Plan(tp=base, head_tp=head, pp=like.pp, head_pp=like.head_pp)


def judge(name: str, *, tp: int) -> Iterator[Judged]:
    """Every mutant of one type's suggested plan."""
    loaded = load(name)
    model = build(loaded)
    prefix = base_prefix(model)
    suggestion = suggest(loaded)
    found = list(mutants(suggestion.graph, suggestion.plan.styles(prefix)))
    small = twin(loaded, tp=tp)
    for start in range(0, len(found), BATCH):
        batch = found[start : start + BATCH]
        plans = [plan_of(dict(mutant.styles), prefix, suggestion.plan) for mutant in batch]
        proofs = [prove(loaded, plan, tp=tp) for plan in plans]
        runs = _runs(small, plans, tp)
        for mutant, proof, run in zip(batch, proofs, runs, strict=True):
            yield _judged(name, mutant, prefix, proof, run)


def _runs(small: Loaded, plans: list[Plan], tp: int) -> list[LevelResult]:
    return list(confirm_cases(tuple(Case(small, plan, tp, 1) for plan in plans), timeout=600.0))


def _judged(name: str, mutant: Mutant, prefix: str, proof: LevelResult, run: LevelResult) -> Judged:
    errors = [finding for finding in proof.findings if finding.severity is Severity.ERROR]
    entry = mutant.entry.removeprefix(f"{prefix}." if prefix else "")
    return Judged(
        model=name,
        operator=mutant.operator,
        entry=entry,
        proof=proof.verdict.value,
        run=run.verdict.value,
        codes=tuple(finding.code for finding in (*proof.findings, *run.findings)),
        named=any(finding.place.entry == entry for finding in errors),
    )


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Judge all mutants of these types, print the table, write JSON; exit 1 on a false proof or accusation."""
    console = Console(stderr=True)
    known: dict[str, list[dict[str, object]]] = json.loads(out.read_text()) if out.exists() else {}
    for name in track(types or causal_types(), description="mutants", console=console):
        if name in known:
            continue
        try:
            known[name] = [_row(judged) for judged in judge(name, tp=tp)]
        except (LoadError, TraceError, TwinError, ValueError) as error:
            known[name] = []
            console.print(f"{name}: not judged: {error}")
        out.write_text(json.dumps(known, indent=1))
    rows = [row for name in known for row in known[name]]
    Console().print(_table(rows))
    return int(any(row["outcome"] in ("false proof", "false accusation") for row in rows))


def _row(judged: Judged) -> dict[str, object]:
    return {
        "operator": judged.operator,
        "entry": judged.entry,
        "proof": judged.proof,
        "run": judged.run,
        "codes": list(judged.codes),
        "named": judged.named,
        "outcome": judged.outcome,
    }


OUTCOMES = ("refuted", "equivalent", "undecided", "false proof", "false accusation")


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table("operator", *OUTCOMES, "entry named", title=f"{len(rows)} mutants")
    for operator in [*sorted({str(row["operator"]) for row in rows}), "all"]:
        mine = [row for row in rows if operator in ("all", row["operator"])]
        counts = Counter(str(row["outcome"]) for row in mine)
        named = sum(bool(row["named"]) for row in mine if row["outcome"] == "refuted")
        table.add_row(operator, *(str(counts[outcome]) for outcome in OUTCOMES), f"{named}/{counts['refuted']}")
    return table
