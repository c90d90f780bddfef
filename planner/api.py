"""From a model to a plan, in one call."""

from dataclasses import dataclass, replace
from math import gcd, prod

from planner.frontend.load import Loaded, base_prefix, build, load, reads_config_plan
from planner.frontend.trace import trace
from planner.infer.ep import infer_ep
from planner.infer.pp import infer_pipeline
from planner.infer.probe import prober
from planner.infer.tp import Inference, infer_tp
from planner.ir.graph import Graph
from planner.ir.placement import Shard
from planner.ir.plan import Plan, TpEntry
from planner.sharding.assign import assign

MOST_RANKS = 1024
"""Degrees are listed up to this many ranks."""


@dataclass(frozen=True)
class Suggestion:
    """A plan, and what is known of it.

    `degrees` are the tensor-parallel degrees that divide every split dim (vocabularies may be uneven); `sharded_fraction` is
    the share of parameter bytes that the plan shards; `notes` are the assumptions of the trace.
    """

    plan: Plan
    degrees: tuple[int, ...]
    sharded_fraction: float
    graph: Graph
    notes: tuple[str, ...] = ()


def suggest(model: Loaded | str) -> Suggestion:
    """Infer the plan of a model from its computation.

    Args:
        model: a loaded model, or a reference (a model type, a config.json, a checkpoint folder, a Hub id, `file.py:Class`).

    Raises:
        LoadError: the reference names no model.
        TraceError: the model's forward cannot be run without data; says where it stopped.
    """
    loaded = load(model) if isinstance(model, str) else model
    built = build(loaded)
    graph = trace(built)
    prefix = base_prefix(built)
    inference = infer_tp(graph, prober(built, graph, prefix))
    pipeline, head_pipeline = infer_pipeline(built, graph)
    plan = replace(
        _split_by_owner(inference, prefix, in_config=reads_config_plan(built)), pp=pipeline, head_pp=head_pipeline
    )
    plan = replace(plan, ep=infer_ep(graph, plan.tp, prefix))
    return Suggestion(plan, degrees(inference), sharded_fraction(graph, plan, prefix), graph, graph.notes)


def _split_by_owner(inference: Inference, prefix: str, *, in_config: bool) -> Plan:
    """Entries below the base model go to its config, relative to it; the others, or all where no config's plan is read, to
    the head class.
    """
    inside = prefix + "." if prefix else ""
    base = [entry for pattern, entry in inference.entries.items() if in_config and pattern.startswith(inside)]
    head = [entry for entry in inference.entries.values() if entry not in base]
    return Plan(
        tp=tuple(TpEntry(entry.pattern.removeprefix(inside), entry.style, entry.because) for entry in base),
        head_tp=tuple(head),
        unplanned=inference.unplanned,
    )


def degrees(inference: Inference) -> tuple[int, ...]:
    """Every degree that divides all split dims."""
    common = gcd(*inference.sizes) if inference.sizes else 1
    return tuple(degree for degree in range(1, MOST_RANKS + 1) if common % degree == 0)


def sharded_fraction(graph: Graph, plan: Plan, prefix: str) -> float:
    """Share of parameter bytes that a plan shards; a tied parameter counts once."""
    assigned = assign(graph, plan.styles(prefix), base_prefix=prefix)
    sharded, total = 0, 0
    seen: set[int] = set()
    for module in graph.modules:
        for local, number in module.parameters:
            name = f"{module.path}.{local}" if module.path else local
            if number in seen:
                continue
            seen.add(number)
            elements = prod(graph.values[number].shape)
            total += elements
            sharded += elements if isinstance(assigned.parameters.get(name, (None,))[0], Shard) else 0
    return sharded / total if total else 0.0
