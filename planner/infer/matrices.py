"""Large matrices on their own: split by row, with the lookups summed or the output gathered."""

from collections.abc import Mapping
from math import prod

from planner.infer.groups import Groups
from planner.infer.reasons import locked
from planner.ir.graph import Graph, Module
from planner.ir.plan import TpEntry, generic

WORTH_SHARE = 0.01
WORTH_ELEMENTS = 1 << 26
"""A matrix is worth a collective of its own from this share of all parameters on, or from this many elements."""


def large_leftovers(groups: Groups, planned: Mapping[str, TpEntry], reasons: Mapping[str, str]) -> list[list[TpEntry]]:
    """Proposals for modules without an entry whose parameters are worth a collective; tied ones go together."""
    graph = groups.graph
    looked_up = {op.inputs[0] for op in graph.ops if op.target.endswith("embedding") and op.inputs}
    total = sum(prod(value.shape) for value in graph.values if value.name is not None)
    proposals: dict[int, list[TpEntry]] = {}
    seen: set[str] = set()
    for module in graph.modules:
        pattern = generic(module.path)
        weights = [number for _, number in module.parameters if len(graph.values[number].shape) == 2]
        if pattern in planned or pattern in seen or len(weights) != 1:
            continue
        seen.add(pattern)
        tied = weights[0] in looked_up and _times_used(graph, weights[0]) > 1
        if (
            tied
            or _weight(graph, pattern) >= WORTH_SHARE * total
            or prod(graph.values[weights[0]].shape) >= WORTH_ELEMENTS
        ):
            reason = reasons.get(pattern) or locked(groups, module)
            entry = _on_its_own(module, looked_up, weights[0], reason)
            if entry is not None:
                proposals.setdefault(weights[0], []).append(entry)
    return list(proposals.values())


def _times_used(graph: Graph, number: int) -> int:
    return sum(number == own for module in graph.modules for _, own in module.parameters)


def _weight(graph: Graph, pattern: str) -> int:
    """Elements of all parameters under one pattern."""
    found = (m for m in graph.modules if generic(m.path) == pattern)
    return sum(prod(graph.values[number].shape) for module in found for _, number in module.parameters)


def _on_its_own(module: Module, looked_up: set[int], weight: int, reason: str) -> TpEntry | None:
    """The entry that splits one matrix without asking anything of its surroundings."""
    pattern = generic(module.path)
    if "Embedding" in module.bases and weight in looked_up:
        return TpEntry(
            pattern, "embedding_rowwise", "a table looked up by row: a rank holds some rows, and the lookups are summed"
        )
    if "Linear" in module.bases and "out_features" in dict(module.numbers):
        because = f"its rows are split and its output gathered, for the output is needed whole: {reason}"
        return TpEntry(pattern, "colwise_gather_output", because)
    return None
