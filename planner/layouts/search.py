"""From facts and a machine to a ranked list of layouts: the best first, the Pareto set marked, illegal ones with their
reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.readable_text import format_bytes
from shardproof.planner.layouts.balance import Costs, Room, balance
from shardproof.planner.layouts.cost import (
    Facts,
    Load,
    Machine,
    RankMemory,
    RankTraffic,
    handed,
    rank_memory,
    seconds,
    sent,
    summed,
)
from shardproof.planner.layouts.space import Layout, layouts, why_not


@dataclass(frozen=True, slots=True)
class Choice:
    """A legal layout: the layers of each stage, the memory of the fullest rank, the collectives of the busiest rank,
    seconds for ranking, the memory of a rank of each stage, the most bytes per token that a rank sends to other stages, and
    the bytes of gradients that a rank all-reduces over the replicas in each step.

    `pareto` means that no other layout is at least as good in memory and in time and better in one of them.
    """

    layout: Layout
    layers: tuple[int, ...]
    held: RankMemory
    sent: RankTraffic
    seconds: float
    stages: tuple[RankMemory, ...]
    handed: int = 0
    summed: int = 0
    pareto: bool = False


@dataclass(frozen=True, slots=True)
class Search:
    """The legal layouts, the best first, and the reason against each of the others."""

    choices: tuple[Choice, ...]
    illegal: tuple[tuple[Layout, str], ...]


def search(
    facts: Facts, degrees: Degrees, machine: Machine, load: Load, *, experts: tuple[Facts, Degrees] | None = None
) -> Search:
    """Every layout of the machine's devices; `experts` are the facts and degrees with whole experts on the ranks, if any."""
    choices, illegal = [], []
    for layout in layouts(machine.devices, experts=experts is not None):
        known, legal = experts if experts and layout.experts else (facts, degrees)
        reason = why_not(layout, degrees=legal, depth=known.depth, batch=load.batch)
        found = None if reason else _choice(known, layout, machine, load)
        if isinstance(found, Choice):
            choices.append(found)
        else:
            illegal.append((layout, reason or found or ""))
    ranked = sorted(choices, key=lambda one: (one.seconds, one.held.total))
    return Search(tuple(_marked(ranked)), tuple(illegal))


def _choice(facts: Facts, layout: Layout, machine: Machine, load: Load) -> Choice | str:
    """The best split of the layers into stages, or the reason why none fits."""
    alone = [rank_memory(facts, (unit,), load, tp=layout.tp, dp=layout.dp) for unit in range(facts.depth + 2)]
    # Activations are no sum over units, so the memory that they need is subtracted from the limit.
    weights = [one.total - one.activations for one in alone]
    free = machine.memory - max(one.activations for one in alone)
    costs = Costs(tuple(facts.flops[1:-1]), facts.flops[0], facts.flops[-1])
    takes = Costs(tuple(map(float, weights[1:-1])), float(weights[0]), float(weights[-1]))
    try:
        split = balance(costs, stages=layout.pp, rooms=(Room(takes, free),))
    except ValueError:
        return _too_full(sum(weights) / layout.pp, max(one.activations for one in alone), machine)
    stages = _stages(split.bounds, facts.depth)
    each = tuple(rank_memory(facts, units, load, tp=layout.tp, dp=layout.dp) for units in stages)
    most = max(each, key=lambda one: one.total)
    if most.total > machine.memory:
        return _too_full(most.total - most.activations, most.activations, machine)
    busiest = max((sent(facts, units, load, tp=layout.tp) for units in stages), key=lambda one: one.bytes_per_token)
    time = seconds(facts, stages, load, machine, tp=layout.tp, dp=layout.dp)
    layers = tuple(sum(1 for unit in units if 0 < unit <= facts.depth) for units in stages)
    passed = max(handed(facts, units, load) for units in stages)
    shared = max(summed(facts, units, load, tp=layout.tp) for units in stages) if layout.dp > 1 else 0
    return Choice(layout, layers, most, busiest, time, each, passed, shared)


def _too_full(weights: float, activations: float, machine: Machine) -> str:
    return f"memory: about {format_bytes(weights + activations)} a rank, of {format_bytes(machine.memory)}"


def _stages(bounds: Sequence[int], depth: int) -> list[list[int]]:
    """The units of each stage; the first stage also has the unit before the layers, the last one the unit after them."""
    edges = [0, *bounds, depth]
    stages = [list(range(start + 1, end + 1)) for start, end in pairwise(edges)]
    stages[0].insert(0, 0)
    stages[-1].append(depth + 1)
    return stages


def _marked(ranked: Sequence[Choice]) -> list[Choice]:
    """Mark the Pareto set: in order of time, a choice belongs to it if it needs less memory than all before it."""
    least = float("inf")
    marked = []
    for choice in ranked:
        marked.append(replace(choice, pareto=choice.held.total < least))
        least = min(least, choice.held.total)
    return marked
