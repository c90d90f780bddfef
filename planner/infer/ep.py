"""Expert-parallel plans: whole experts on each rank instead of a slice of every expert."""

from collections.abc import Sequence

from planner.ir.graph import Graph
from planner.ir.plan import TpEntry, generic, join


def infer_ep(graph: Graph, tp: Sequence[TpEntry], base_prefix: str) -> tuple[TpEntry, ...]:
    """Entries for every module of stacked experts: one that the tensor plan reduces as such, all of whose parameters share
    a leading dim of experts. Keys are relative to the base model.
    """
    reduced = {entry.pattern for entry in tp if entry.style == "moe_tp_experts"}
    entries: dict[str, TpEntry] = {}
    for module in graph.modules:
        pattern = generic(module.path).removeprefix(base_prefix + "." if base_prefix else "")
        shapes = [graph.values[number].shape for _, number in module.parameters]
        if pattern not in reduced or pattern in entries or not shapes:
            continue
        if min(map(len, shapes)) < 2 or len({shape[0] for shape in shapes}) > 1:
            continue
        for local, _ in module.parameters:
            name = join(pattern, local)
            entries[name] = TpEntry(name, "grouped_gemm", f"{shapes[0][0]} experts stacked along its first dim")
        entries[pattern] = TpEntry(
            pattern, "ep_dispatch_experts", "tokens are sent to the rank that holds their expert"
        )
    return tuple(entries.values())
