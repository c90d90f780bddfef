"""Experts distributed over the tensor-parallel ranks: each expert whole on one rank, by the expert plan. No torch.

Transformers 5.23.0, `distributed/expert_parallel.py`: with both plans, the experts follow the expert plan and everything
else the tensor plan, on the same ranks. In serving, where the ranks share a batch (`AllReduceEP`), every dispatch
all-reduces its output once. In training, tokens are sent to their experts and the data decide how many; this is not
modelled here.
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
    """The plan without the tensor-parallel entries of modules that have expert entries."""
    taken = [entry.pattern for entry in plan.ep if entry.style == DISPATCH]
    left = [e for e in plan.tp if not any(e.pattern == one or e.pattern.startswith(f"{one}.") for one in taken)]
    return replace(plan, tp=tuple(left))


def with_experts(graph: Graph, plan: Plan, prefix: str) -> Assigned:
    """Placements by the expert plan for experts and by the tensor plan for the rest; hooks come from the tensor plan only."""
    rest = assign(graph, without_experts(plan).styles(prefix), base_prefix=prefix)
    experts = assign(graph, _styles(plan, prefix))
    return Assigned(rest.modules, {**rest.parameters, **experts.parameters})


def dispatches(graph: Graph, plan: Plan, prefix: str) -> tuple[Module, ...]:
    """The modules in all layers to which tokens are dispatched."""
    styles = _styles(plan, prefix)
    return tuple(module for module in graph.modules if styles.get(generic(module.path)) == DISPATCH)


def expert_limits(graph: Graph, plan: Plan, prefix: str) -> tuple[Limit, ...]:
    """The limits of the degree by the experts: every rank needs equally many."""
    counts = {generic(module.path): stacked(graph, module) for module in dispatches(graph, plan, prefix)}
    return tuple(
        Limit(count, True, f"{count} experts", Place(entry.removeprefix(f"{prefix}."), entry))
        for entry, count in counts.items()
        if count
    )


def _styles(plan: Plan, prefix: str) -> dict[str, str]:
    return {join(prefix, entry.pattern): entry.style for entry in plan.ep}
