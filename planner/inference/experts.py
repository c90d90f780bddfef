"""Expert-parallel plans: each rank holds whole experts, instead of a slice of every expert."""

from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import TpEntry, generic, join
from shardproof.planner.propagation.expert_dispatch import dispatch_fault, stacked
from shardproof.planner.transformers_facts.styles import registered

_DISPATCH, _STACKED = "ep_dispatch_experts", "grouped_gemm"


def infer_ep(graph: Graph, base_prefix: str) -> tuple[TpEntry, ...]:
    """Entries for every module of stacked experts to which tokens can be dispatched. Keys are relative to the base model.

    None where the installed Transformers lacks a style that they need.
    """
    if not registered() >= {_DISPATCH, _STACKED}:
        return ()
    entries: dict[str, TpEntry] = {}
    inside = base_prefix + "." if base_prefix else ""
    for module in graph.modules:
        pattern = generic(module.path).removeprefix(inside)
        if pattern in entries or not module.path.startswith(inside) or stacked(graph, module) is None:
            continue
        if module.repeats is not None or dispatch_fault(graph, module) is not None:
            continue
        for local, _ in module.parameters:
            name = join(pattern, local)
            because = f"{stacked(graph, module)} experts stacked along its first dim"
            entries[name] = TpEntry(name, _STACKED, because, because)
        because = "tokens are sent to the rank that holds their expert"
        entries[pattern] = TpEntry(pattern, _DISPATCH, because, "tokens go to the rank of their expert")
    return tuple(entries.values())
