"""Which ops the models of the zoo run, which of them have a rule, and which rules are held by a case of the truth test.

`python -m benchmarks rules [--types llama,...] [--out FILE]`. Every causal-LM type is traced once, as a user's model would be;
the counts of a type that the file holds already are kept.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from benchmarks.types import causal_types
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.graph import Graph
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.propagation.rules.registry import rule_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.trace import trace
from tests.truth.cases import CASES, UNTESTABLE
from tests.truth.harness import rules_of


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Trace the types named, or all; print the coverage, write the counts as JSON. 1 where an op has no rule."""
    known: dict[str, dict[str, int] | str] = json.loads(out.read_text()) if out.exists() else {}
    for name in types or causal_types():
        if name not in known:
            known[name] = _ops_of(name)
            out.write_text(json.dumps(known, indent=1) + "\n")
    counts = {name: ops for name, ops in known.items() if isinstance(ops, dict) and (name in types or not types)}
    print(f"{len(counts)} of {len(types or causal_types())} types were traced")
    return _report(counts)


def _ops_of(name: str) -> dict[str, int] | str:
    try:
        graph: Graph = trace(build(load(name)))
    except (LoadError, TraceError) as error:
        return f"{type(error).__name__}: {error}"
    return dict(Counter(op.target for op in graph.ops))


def _report(counts: Mapping[str, Mapping[str, int]]) -> int:
    met: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for ops in counts.values():
        met.update(ops)
        types.update(ops.keys())
    held = {name for case in CASES for name in rules_of(case)}
    ruled = {target for target in met if rule_of(target)}
    true = {target for target in ruled if rule_of(target) in held}
    total = max(met.total(), 1)
    for what, some in (
        ("with a rule", ruled),
        ("whose rule a truth case holds", true),
        ("whose rule is listed as untestable", {target for target in ruled - true if rule_of(target) in UNTESTABLE}),
    ):
        share = sum(met[target] for target in some) / total
        print(f"{len(some):>4} of {len(met)} ops {what:<36} {share:8.2%} of {total} calls")
    missing = sorted(set(met) - ruled, key=lambda target: (-types[target], -met[target]))
    for target in missing:
        print(f"no rule: {target:<44} {met[target]:>6} calls in {types[target]:>3} types")
    return 1 if missing else 0
