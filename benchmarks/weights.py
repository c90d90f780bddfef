"""Real checkpoints on real ranks: a right plan is confirmed and every wrong one refuted, in the checkpoint's own dtype.

`--types` are references to models with weights: a checkpoint folder or a GGUF file. The degree must be one that the plan
allows, such as 3 for nine heads.
"""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.localize import plan_of
from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import load
from shardproof.verify.stages.case import Case
from tests.mutants.operators import mutants

WRONG = 4
"""Wrong plans for each checkpoint; they are spread over the operators."""
LIMIT = 1800.0


@dataclass(frozen=True, slots=True)
class Judged:
    """One plan on real weights."""

    model: str
    plan: str
    verdict: str
    seconds: float
    measures: dict[str, float]


def judge(reference: str, *, tp: int) -> list[Judged]:
    """The suggested plan, and some that differ from it in one entry."""
    loaded = load(reference)
    suggestion = suggest(loaded)
    prefix = base_prefix(build(loaded))
    wrong = {
        mutant.name: plan_of(mutant.styles, prefix, suggestion.plan)
        for mutant in mutants(suggestion.graph, suggestion.plan.styles(prefix))
        if mutant.operator.startswith(("T1", "T2", "T5", "L1"))
    }
    step = max(1, len(wrong) // WRONG)
    plans: dict[str, Plan] = {"suggested": suggestion.plan, **dict(islice(list(wrong.items())[::step], WRONG))}
    results = confirm_cases(tuple(Case(loaded, plan, tp, weights=True) for plan in plans.values()), timeout=LIMIT)
    return [
        Judged(loaded.title, name, result.verdict.value, round(result.seconds, 1), dict(result.measures))
        for name, result in zip(plans, results, strict=True)
    ]


def main(references: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Judge, print the table, write JSON; exit 1 where a suggested plan is not confirmed."""
    if not references:
        raise SystemExit("weights: give checkpoints with --types PATH,PATH")
    rows: list[Judged] = []
    for reference in track(references, description="weights", console=Console(stderr=True)):
        rows += judge(reference, tp=tp)
        out.write_text(json.dumps([_row(row) for row in rows], indent=1))
    table = Table("model", "plan", "verdict", "s", "logits", "gradient", title=f"real weights at tp {tp}")
    for row in rows:
        errors = (f"{row.measures[what]:.1e}" if what in row.measures else "" for what in ("logits", "gradient"))
        table.add_row(row.model, row.plan, row.verdict, f"{row.seconds:.0f}", *errors)
    Console().print(table)
    return int(any(row.plan == "suggested" and row.verdict != "confirmed" for row in rows))


def _row(row: Judged) -> dict[str, object]:
    return {
        "model": row.model,
        "plan": row.plan,
        "verdict": row.verdict,
        "seconds": row.seconds,
        "measures": row.measures,
    }
