"""Rank the layouts of a model: its plan, the degrees at which that is legal, the facts of a rank, and the search over them."""

from dataclasses import dataclass

from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.degrees import Degrees, degrees_within
from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.plan import Plan
from shardproof.planner.layouts.cost import Facts, Load, Machine
from shardproof.planner.layouts.measure import measure
from shardproof.planner.layouts.search import Search, search
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.propagation.expert_placements import expert_limits, without_experts
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.weights.stored import stored_weights
from shardproof.verify.proof.degrees import legal_degrees


@dataclass(frozen=True, slots=True)
class RankedLayouts:
    """The layouts of one model on one machine, best first, with the plan, the machine and the load that they are for."""

    model: str
    plan: Plan
    machine: Machine
    load: Load
    facts: Facts
    search: Search


def machine_of(*, devices: int, memory: float, nodes: int = 1, intra: float = 450e9, inter: float = 50e9) -> Machine:
    """A machine of so many devices with so many bytes of memory each, divided evenly over `nodes`; `intra` and `inter` are the
    link rates in and between nodes, in bytes a second.

    Raises:
        ArgumentError: a count is below 1, or the devices do not divide evenly over the nodes.
    """
    _at_least_one(devices=devices, memory=memory, nodes=nodes)
    if devices % nodes:
        raise ArgumentError(f"{devices} devices do not divide evenly over {nodes} nodes.")
    return Machine(devices, memory, nodes, intra, inter)


def _at_least_one(**counts: float) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ArgumentError(f"{name} is at least 1, not {count}.")


def rank_layouts(model: LoadedModel | str, plan: Plan | None, machine: Machine, wanted: Load) -> RankedLayouts:
    """Rank every layout of the machine's devices. Without a plan: the one that the model carries, else a suggestion.

    Raises:
        ArgumentError: a count of the load is below 1.
        LoadError: the reference names no model.
        TraceError: the forward cannot be traced, so nothing is known of the model.
    """
    _at_least_one(context=wanted.context, batch=wanted.batch, element_bytes=wanted.width)
    loaded = load(model) if isinstance(model, str) else model
    built = on_meta(loaded)
    if not subject_of(built).graph.outputs:
        raise TraceError("it returns no tensor", "", None)
    plan = plan if plan is not None else _plan_of(loaded)
    degrees = legal_degrees(loaded, plan)
    stored = stored_weights(built, None if loaded.adapters else loaded.checkpoint)
    facts = measure(built, plan, degrees, context=wanted.context, train=wanted.train, stored=stored)
    experts = None if wanted.train or not plan.ep else _whole_experts(loaded, plan, degrees, wanted, facts)
    return RankedLayouts(
        loaded.title, plan, machine, wanted, facts, search(facts, degrees, machine, wanted, experts=experts)
    )


def _plan_of(loaded: LoadedModel) -> Plan:
    """The model's own plan where it has one for tensors, else the suggestion."""
    own = carried_plan(loaded, on_meta(loaded))
    return own if own.tp or own.head_tp else suggest(loaded).plan


def _whole_experts(
    loaded: LoadedModel, plan: Plan, degrees: Degrees, wanted: Load, facts: Facts
) -> tuple[Facts, Degrees] | None:
    """Facts and degrees where the tensor-parallel ranks hold whole experts; None where that is never legal."""
    built = on_meta(loaded)
    subject, rest = subject_of(built), without_experts(plan)
    taken = {entry.pattern for entry in plan.tp} - {entry.pattern for entry in rest.tp}
    # Fewer entries forbid no degree more; only where one that is taken away was named may they forbid fewer.
    if any(limit.place.entry in taken for limit, _ in degrees.limits):
        degrees = legal_degrees(loaded, rest)
    legal = degrees_within(expert_limits(subject.graph, plan, subject.prefix), degrees.forbidden)
    if len(legal.legal) < 2:
        return None
    stored = stored_weights(built, None if loaded.adapters else loaded.checkpoint)
    return measure(built, plan, legal, context=wanted.context, experts=True, known=facts, stored=stored), legal
