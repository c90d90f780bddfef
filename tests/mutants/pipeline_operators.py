"""Mutation operators: mistakes that people make in pipeline plans and stage splits, applied to a right one at a time.

The names P1, P3, ... are those of the project's list of faults. Faults of a runtime that no plan or split
carries (a wrong peer, a local cache index, a tied gradient that is not summed) are `tests.mutants.stage_operators`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shardproof.planner.ir.dataflow import stream
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import Plan, PpEntry, join


@dataclass(frozen=True, slots=True)
class PipelineMutant:
    """A wrong (or equivalent) pipeline: the operator, the entry it touched, the plan, and layers too many per stage."""

    operator: str
    entry: str
    plan: Plan
    overlap: int = 0

    @property
    def name(self) -> str:
        """A name within one model."""
        return f"{self.operator}: {self.entry}: {', '.join(entry.module for entry in self.plan.pp)}"


def pipeline_mutants(graph: Graph, plan: Plan, prefix: str, stack: str) -> Iterator[PipelineMutant]:
    """Every single mutation; `stack` is the key of the layers."""
    for at, entry in enumerate(plan.pp):
        before, after = plan.pp[:at], plan.pp[at + 1 :]
        again = replace(entry, module=f"{entry.module}.0" if entry.module == stack else entry.module)
        yield _mutant("P1 key missing", entry, plan, (*before, *after))
        yield _mutant("P1 module twice", entry, plan, (*plan.pp, again))
        yield _mutant("P16 no such module", entry, plan, (*before, replace(entry, module=f"{entry.module}_"), *after))
        for other in range(at + 1, len(plan.pp)):
            swapped = list(plan.pp)
            swapped[at], swapped[other] = swapped[other], swapped[at]
            yield _mutant("P3 order changed", entry, plan, tuple(swapped))
        for name in entry.inputs if entry.module == stack else ():
            fewer = replace(entry, inputs=tuple(one for one in entry.inputs if one != name))
            yield _mutant(f"P5 input not listed: {name}", entry, plan, (*before, fewer, *after))
    for key in _made_once(graph, plan, prefix, stack):
        at = next(place for place, entry in enumerate(plan.pp) if entry.module == stack)
        kept = PpEntry(key, ("position_ids",), ("position_embeddings",))
        yield _mutant("P5 kept to the first stage, not passed", kept, plan, (*plan.pp[:at], kept, *plan.pp[at:]))
    for overlap, what in ((1, "a layer on two stages"), (-1, "a layer on no stage")):
        yield PipelineMutant(f"P1 {what}", stack, plan, overlap)


def _mutant(operator: str, entry: PpEntry, plan: Plan, entries: tuple[PpEntry, ...]) -> PipelineMutant:
    return PipelineMutant(operator, entry.module, replace(plan, pp=entries))


def _made_once(graph: Graph, plan: Plan, prefix: str, stack: str) -> list[str]:
    """Modules beside the layers whose result the layers take, and that a right plan leaves to every stage."""
    layers, owner = join(prefix, stack), join(prefix, stack).rpartition(".")[0]
    taken = {value for call in graph.calls if call.module.startswith(f"{layers}.") for _, value in call.arguments}
    keys, flow = {join(prefix, entry.module) for entry in plan.pp}, stream(graph)
    beside = [call for call in graph.calls if call.module.rpartition(".")[0] == owner and call.module not in keys]
    made = {call.module: None for call in beside if taken.intersection(call.outputs) and flow.isdisjoint(call.outputs)}
    return [path.removeprefix(f"{prefix}.") for path in made]
