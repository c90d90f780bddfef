"""Is the entry at fault the one that is named? One-entry faults planted in right plans, run, and localised.

The ranks are threads of this process. Counted are mutants that the run refutes; *by the first divergence* is the entry named
from the comparison alone, *after trying* the one whose edit was run and agreed.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.trace import trace
from shardproof.planner.twins.twin import TwinError, twin
from shardproof.verify.diagnose import diagnosed
from shardproof.verify.run.inprocess import InProcess
from shardproof.verify.run.verdicts import findings_of, measures_of
from shardproof.verify.stages.case import Case
from tests.mutants.operators import Mutant, mutants

TYPES = ("llama", "qwen3", "gemma2", "phi3", "gpt_neox", "mixtral", "deepseek_v3", "olmo2", "starcoder2", "glm4")
EACH = 24
"""Faults planted in one type's plan, unless `--limit` says otherwise; fewer of them are the first of more."""
OVERRIDES = {"llama": {"num_key_value_heads": "8"}}
"""Types whose default config has as many KV heads as heads get fewer: only then is a whole key silently wrong."""


@dataclass(frozen=True, slots=True)
class Located:
    """One planted fault that the run refuted: the entry that was touched, and those that were named."""

    model: str
    tp: int
    operator: str
    entry: str
    code: str
    first: str | None
    tried: str | None
    edit: str
    error: float | None
    """The largest relative error that was measured; None where a rank raised instead."""


def plan_of(styles: Mapping[str, str], prefix: str, like: Plan) -> Plan:
    """Styles with the head model's keys as a plan, the pipeline of another kept."""
    inside = f"{prefix}." if prefix else ""
    base = tuple(TpEntry(key.removeprefix(inside), style) for key, style in styles.items() if key.startswith(inside))
    head = tuple(TpEntry(key, style) for key, style in styles.items() if not key.startswith(inside))
    return Plan(tp=base, head_tp=head, pp=like.pp, head_pp=like.head_pp)


def planted(graph: Graph, styles: Mapping[str, str], *, seed: str, most: int = EACH) -> list[Mutant]:
    """Mutants of one entry, at most so many, drawn alike every time; a key that matches nothing is found without a run."""
    found = [m for m in mutants(graph, styles) if len(m.entries) == 1 and not m.operator.startswith("T3")]
    random.Random(seed).shuffle(found)
    return found[:most]


def locate(name: str, *, tp: int, most: int = EACH) -> Iterator[Located]:
    """Every refuted mutant of one type's own plan."""
    loaded = load(name, overrides=OVERRIDES.get(name))
    model = build(loaded)
    small, prefix, carried = twin(loaded, tp=tp), base_prefix(model), carried_plan(loaded, model)
    with InProcess(tp) as ranks:
        for mutant in planted(trace(model), carried.styles(prefix), seed=name, most=most):
            case = Case(small, plan_of(mutant.styles, prefix, carried), tp)
            outcomes = ranks.check(case)
            found = findings_of(case, outcomes)
            if any(finding.severity is Severity.ERROR for finding in found):
                error = max(measures_of(case, outcomes).values(), default=None)
                yield replace(_located(name, mutant, case, found, ranks), error=None if raised(found) else error)


def _findings(ranks: InProcess, case: Case) -> tuple[Finding, ...]:
    return findings_of(case, ranks.check(case))


def _located(name: str, mutant: Mutant, case: Case, found: tuple[Finding, ...], ranks: InProcess) -> Located:
    after = diagnosed(case, found, lambda other: _findings(ranks, other))
    return Located(
        model=name,
        tp=case.tp,
        operator=mutant.operator,
        entry=mutant.entries[0],
        code=found[0].code,
        first=found[0].place.entry,
        tried=after[0].place.entry,
        edit=str(after[0].fix.title) if after[0].fix else "",
        error=None,
    )


def raised(found: Sequence[Finding]) -> bool:
    """Whether the plan was refuted since it cannot be run."""
    return any(finding.code == "DY504" and finding.severity is Severity.ERROR for finding in found)


def main(types: tuple[str, ...], out: Path, *, tp: int, limit: int = 0) -> int:
    """Plant, run and locate; print the table, write JSON; exit 1 below 95 %."""
    console = Console(stderr=True)
    known: dict[str, list[dict[str, object]]] = json.loads(out.read_text()) if out.exists() else {}
    for name in track(types or TYPES, description="localise", console=console):
        if (key := f"{name} tp {tp}") in known:
            continue
        try:
            known[key] = [asdict(located) for located in locate(name, tp=tp, most=limit or EACH)]
        except (LoadError, TraceError, TwinError, ValueError) as error:
            known[key] = []
            console.print(f"{name}: not run: {error}")
        out.write_text(json.dumps(known, indent=1))
    rows = [row for rows in known.values() for row in rows]
    Console().print(_table(rows))
    errors = sorted(float(str(row["error"])) for row in rows if row.get("error") is not None)
    Console().print(
        f"smallest relative error of a refuted plan: {errors[0]:.1e} of {len(errors)}"
        if errors
        else "no error measured"
    )
    named = sum(row["entry"] == row["tried"] for row in rows)
    return int(named < 0.95 * len(rows))


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table("operator", "planted", "by the first divergence", "after trying", title="entry at fault named first")
    planted = Counter(str(row["operator"]) for row in rows)
    for operator in [*sorted(planted), "all"]:
        mine = [row for row in rows if operator in ("all", row["operator"])]
        first = sum(row["entry"] == row["first"] for row in mine)
        tried = sum(row["entry"] == row["tried"] for row in mine)
        table.add_row(operator, str(len(mine)), str(first), str(tried))
    return table
