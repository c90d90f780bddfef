"""Experts over the tensor-parallel ranks: each expert whole on one rank, as the expert plan says. No torch.

Transformers 5.23.0, `distributed/expert_parallel.py`: of a plan for both axes the experts follow the expert plan and everything
else the tensor plan, on the same ranks. In serving, where those ranks share a batch (`AllReduceEP`), every dispatch sums its
output over them once; in training tokens travel to their experts, in numbers that the data decide, and nothing is told here.
"""

from dataclasses import replace

from shardproof.planner.ir.degrees import Limit
from shardproof.planner.ir.findings import Place
from shardproof.planner.ir.graph import Graph, Module
from shardproof.planner.ir.plan import Plan, generic, join
from shardproof.planner.propagation.assign import Assigned, assign
from shardproof.planner.propagation.expert_dispatch import stacked

DISPATCH = "ep_dispatch_experts"


def without_experts(plan: Plan) -> Plan:
    """The plan less the tensor-parallel entries of the modules that the expert plan takes over."""
    taken = [entry.pattern for entry in plan.ep if entry.style == DISPATCH]
    left = [e for e in plan.tp if not any(e.pattern == one or e.pattern.startswith(f"{one}.") for one in taken)]
    return replace(plan, tp=tuple(left))


def with_experts(graph: Graph, plan: Plan, prefix: str) -> Assigned:
    """Where parameters lie: the experts by the expert plan, the rest by the tensor plan; hooks are the tensor plan's alone."""
    rest = assign(graph, without_experts(plan).styles(prefix), base_prefix=prefix)
    experts = assign(graph, _styles(plan, prefix))
    return Assigned(rest.modules, {**rest.parameters, **experts.parameters})


def dispatches(graph: Graph, plan: Plan, prefix: str) -> tuple[Module, ...]:
    """The modules of every layer that tokens are sent to."""
    styles = _styles(plan, prefix)
    return tuple(module for module in graph.modules if styles.get(generic(module.path)) == DISPATCH)


def expert_limits(graph: Graph, plan: Plan, prefix: str) -> tuple[Limit, ...]:
    """Every rank needs equally many experts."""
    counts = {generic(module.path): stacked(graph, module) for module in dispatches(graph, plan, prefix)}
    return tuple(
        Limit(count, True, f"{count} experts", Place(entry.removeprefix(f"{prefix}."), entry))
        for entry, count in counts.items()
        if count
    )


def _styles(plan: Plan, prefix: str) -> dict[str, str]:
    return {join(prefix, entry.pattern): entry.style for entry in plan.ep}
