"""What values of a graph derive from: dataflow, from a few seeds to all that they reach."""

from collections.abc import Iterable

from planner.ir.graph import Graph


def derived(graph: Graph, seeds: Iterable[int]) -> frozenset[int]:
    """The seeds and every value computed from one of them."""
    found = set(seeds)
    for op in graph.ops:
        if not found.isdisjoint(op.inputs):
            found.update(op.outputs)
    return frozenset(found)


def stream(graph: Graph) -> frozenset[int]:
    """Values that derive from a trained parameter: what a pipeline stage must be sent, for it cannot make it alone."""
    return derived(graph, (number for module in graph.modules for _, number in module.parameters))


def given(graph: Graph) -> frozenset[int]:
    """Values that derive from the caller's inputs."""
    return derived(graph, (number for _, number in graph.inputs))
