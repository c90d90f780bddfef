"""The largest stage's cost against the optimum, on the real sizes of models: by trying every split where they are few enough,
else against a bound that no split can be below; and against the even split.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb
from pathlib import Path

from rich.console import Console
from rich.progress import track

from shardproof.planner.inference.pipeline import infer_pipeline
from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.plan import Plan
from shardproof.planner.layouts.balance import Costs, balance, loads
from shardproof.planner.layouts.measure import measure
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.trace import trace

TYPES = (
    *(
        "llama",
        "gemma2",
        "gpt2",
        "opt",
        "mixtral",
        "deepseek_v3",
        "glm4_moe",
        "jamba",
        "bamba",
        "falcon_h1",
        "qwen3_next",
    ),
    *(
        "gpt_oss",
        "llama4_text",
        "ernie4_5_moe",
        "cohere2",
        "lfm2",
        "recurrent_gemma",
        "bart",
        "gemma3n_text",
        "nemotron_h",
    ),
)
LAYOUTS = tuple((stages, rounds) for stages in (2, 3, 4, 8) for rounds in (1, 2, 4))
FEW = 60_000
"""Splits that are tried one by one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One model, one layout, one cost: the largest load, the even split's, and the optimum; `exhaustive` where it was found by
    trying every split, else it is a bound that no split can be below.
    """

    model: str
    stages: int
    rounds: int
    cost: str
    largest: float
    even: float
    optimum: float
    exhaustive: bool

    @property
    def above(self) -> float:
        """How far above the optimum, relative."""
        return self.largest / self.optimum - 1 if self.optimum else 0.0


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Split these models, print the worst, write JSON; exit 1 where one is 1 % above an optimum that is known."""
    del tp
    console, rows = Console(stderr=True), list[Row]()
    for name in track(types or TYPES, description="balance", console=console):
        try:
            rows += measured(name)
        except (LoadError, TraceError, ValueError) as error:
            console.print(f"{name}: not measured: {error}")
    out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    Console().print(summary(rows))
    return int(any(row.exhaustive and row.above >= 0.01 for row in rows))


def measured(name: str) -> Iterator[Row]:
    """One model's layers, weighed by operations and by bytes of parameters."""
    model = build(load(name))
    base, head = infer_pipeline(model, trace(model))
    facts = measure(model, Plan(pp=base, head_pp=head), Degrees((1,), {}), context=1024)
    sizes = facts.elements(1)
    held = [float(sum(sizes[at] for at in facts.used((unit,)))) for unit in range(facts.depth + 2)]
    for cost, units in (("operations", facts.flops), ("parameters", held)):
        costs = Costs(tuple(units[1:-1]), units[0], units[-1])
        for stages, rounds in LAYOUTS:
            if stages * rounds <= facts.depth:
                yield _split(name, costs, cost, stages, rounds)


def _split(name: str, costs: Costs, cost: str, stages: int, rounds: int) -> Row:
    found = balance(costs, stages=stages, rounds=rounds)
    depth, cuts = len(costs.layers), stages * rounds - 1
    few = comb(depth - 1, cuts) <= FEW
    optimum = found.least
    if few:
        optimum = min(max(loads(costs, bounds, stages)) for bounds in combinations(range(1, depth), cuts))
    return Row(name, stages, rounds, cost, found.largest, found.even, optimum, few)


def summary(rows: Sequence[Row]) -> str:
    """The worst distance from the optimum, and how much the even split is worse."""
    tried, bound = [row for row in rows if row.exhaustive], [row for row in rows if not row.exhaustive]
    gains = sorted(row.even / row.largest - 1 for row in rows if row.largest)
    return "\n".join(
        [
            f"{len(rows)} splits of {len({row.model for row in rows})} models",
            f"every split tried: {len(tried)}, at most {max((row.above for row in tried), default=0):.2%} above the optimum",
            f"against a bound: {len(bound)}, at most {max((row.above for row in bound), default=0):.2%} above it",
            f"the even split's largest stage: {gains[len(gains) // 2]:.1%} larger in the median, {gains[-1]:.0%} at most",
            *(
                f"{row.model} {row.stages} x {row.rounds} {row.cost}: {row.above:.2%}"
                for row in rows
                if row.above >= 0.01
            ),
        ]
    )
