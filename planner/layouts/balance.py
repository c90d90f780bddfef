"""Stage boundaries that minimise the largest cost of a pipeline rank.

Costs have any one unit (seconds, operations, bytes): one per layer, one for the modules before the layers (the embedding)
on the first stage, one for those after them (norm, head) on the last. With one chunk of layers per rank the result is
exact, by dynamic programming over contiguous cuts. With several (interleaved) chunks it comes from branch and bound, and
`least` is a lower bound.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from math import inf, isfinite

STEP = 0.001
"""Interleaved chunks: the search stops at this relative distance from its lower bound."""
NODES = 4_000
"""Interleaved chunks: search nodes for one target before the target counts as not reachable."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The cost of each layer, and of the modules before and after the layers; none is negative."""

    layers: tuple[float, ...]
    before: float = 0.0
    after: float = 0.0

    def __post_init__(self) -> None:
        if not all(isfinite(cost) and cost >= 0 for cost in (*self.layers, self.before, self.after)):
            raise ValueError("costs of layers must be finite numbers, none of them negative.")


@dataclass(frozen=True, slots=True)
class Room:
    """A limit in addition to the cost: how much each layer uses (such as bytes), and how much every rank has."""

    takes: Costs
    size: float


@dataclass(frozen=True, slots=True)
class Split:
    """A split of the layers over chunks in order; chunk `c` runs on rank `c % stages`.

    `bounds` are the first layers of chunks 1, 2, ...; `loads` the cost of each rank; `even` the largest load of a split
    into equally many layers, longer chunks last; `least` a lower bound of the largest load over all splits.
    """

    bounds: tuple[int, ...]
    loads: tuple[float, ...]
    even: float
    least: float

    @property
    def largest(self) -> float:
        """The largest load of a rank."""
        return max(self.loads)


def balance(
    costs: Costs, *, stages: int, rounds: int = 1, cuts: Iterable[int] | None = None, rooms: Sequence[Room] = ()
) -> Split:
    """The split over `stages` ranks, each with `rounds` chunks of layers, that minimises the largest load.

    Args:
        costs: the costs to balance.
        stages: ranks along the pipeline.
        rounds: chunks per rank (virtual stages); 1 means no interleaving.
        cuts: the layers at which a chunk may start; by default all.
        rooms: limits that hold on every rank.

    Raises:
        ValueError: there are too few layers (or allowed cuts) for the chunks, or no split is within the limits.
    """
    if stages < 1 or rounds < 1:
        raise ValueError(f"a pipeline has at least one stage and one chunk a stage, not {stages} and {rounds}.")
    depth = len(costs.layers)
    starts = [0, *sorted({cut for cut in (range(depth) if cuts is None else cuts) if 0 < cut < depth})]
    if stages * rounds > len(starts):
        raise ValueError(
            f"{depth} layers that can be cut at {len(starts) - 1} places make no {stages * rounds} stages."
        )
    problem = _Problem(
        (costs, *(room.takes for room in rooms)), tuple(room.size for room in rooms), starts, stages, rounds
    )
    found, least = _one_round(problem) if rounds == 1 else _several_rounds(problem)
    if found is None:
        raise ValueError(f"no split over {stages} stages keeps the limits.")
    even = [number * depth // (stages * rounds) for number in range(1, stages * rounds)]
    bounds = tuple(starts[at] for at in found)
    return Split(bounds, loads(costs, bounds, stages), max(loads(costs, even, stages)), least)


def loads(costs: Costs, bounds: Sequence[int], stages: int) -> tuple[float, ...]:
    """Each rank's cost under a split."""
    total = [0.0] * stages
    edges = [0, *bounds, len(costs.layers)]
    for chunk, (start, end) in enumerate(pairwise(edges)):
        total[chunk % stages] += sum(costs.layers[start:end])
    total[0] += costs.before
    total[len(bounds) % stages] += costs.after
    return tuple(total)


class _Problem:
    """Blocks of layers (cuts inside a block are not allowed), with prefix sums of every cost."""

    def __init__(
        self, costs: Sequence[Costs], sizes: Sequence[float], starts: Sequence[int], stages: int, rounds: int
    ) -> None:
        self.sizes, self.stages, self.rounds = sizes, stages, rounds
        self.blocks, self.chunks = len(starts), stages * rounds
        edges = [*starts, len(costs[0].layers)]
        sums = [list(accumulate(cost.layers, initial=0.0)) for cost in costs]
        self.sums = [[row[edge] for edge in edges] for row in sums]
        self.ends = [(cost.before, cost.after) for cost in costs]

    def ends_of(self, chunk: int, start: int) -> range:
        """The blocks at which a chunk that starts at `start` may end, so that every chunk has at least one block."""
        last = self.blocks - (self.chunks - 1 - chunk)
        return range(last, last + 1) if chunk == self.chunks - 1 else range(start + 1, last + 1)

    def cost(self, chunk: int, start: int, end: int, kind: int = 0) -> float:
        """The cost of a chunk; `kind` 0 is the cost that is balanced, the others are the limited quantities."""
        before, after = self.ends[kind]
        total = self.sums[kind][end] - self.sums[kind][start]
        return total + (before if chunk == 0 else 0.0) + (after if chunk == self.chunks - 1 else 0.0)

    def fits(self, chunk: int, start: int, end: int) -> bool:
        """Whether a chunk alone is within the limits."""
        return all(self.cost(chunk, start, end, kind) <= size for kind, size in enumerate(self.sizes, 1))

    @property
    def total(self) -> float:
        """The total cost of all blocks."""
        return self.sums[0][-1] + sum(self.ends[0])


def _one_round(problem: _Problem) -> tuple[list[int] | None, float]:
    """Exact: the minimal largest cost, and among the splits with that cost the one with the least sum of squares."""
    largest, _ = _programmed(problem, max, most=_even_largest(problem))
    _, bounds = _programmed(problem, lambda so_far, cost: so_far + cost * cost, most=largest)
    return bounds, largest


def _even_largest(problem: _Problem) -> float:
    """The largest cost of the split into equally many blocks, an upper bound; infinite if that split is not within the
    limits.
    """
    edges = [number * problem.blocks // problem.chunks for number in range(problem.chunks + 1)]
    chunks = list(enumerate(pairwise(edges)))
    if not all(problem.fits(chunk, start, end) for chunk, (start, end) in chunks):
        return inf
    return max(problem.cost(chunk, start, end) for chunk, (start, end) in chunks)


def _programmed(
    problem: _Problem, joined: Callable[[float, float], float], *, most: float
) -> tuple[float, list[int] | None]:
    """Dynamic programming over the end of each chunk: the minimal joined cost with no chunk above `most`, and its cuts."""
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for chunk in range(problem.chunks):
        reached: dict[int, tuple[float, list[int]]] = {}
        for start, (so_far, bounds) in best.items():
            for end in problem.ends_of(chunk, start):
                cost = problem.cost(chunk, start, end)
                if cost > most or not problem.fits(chunk, start, end):
                    break  # costs and limited quantities only grow with the end
                total = joined(so_far, cost)
                if end not in reached or total < reached[end][0]:
                    reached[end] = (total, [*bounds, end])
        best = reached
    total, cuts = best.get(problem.blocks, (inf, []))
    return total, cuts[:-1] if cuts else None


def _several_rounds(problem: _Problem) -> tuple[list[int] | None, float]:
    """Bisection on the largest load, between the lower bound and the best split found."""
    least = problem.total / problem.stages
    below, found = least, _Search(problem, inf).run()
    if found is None:
        return None, inf
    above = max(_rank_loads(problem, found))
    while above - below > STEP * above:
        target = below + (above - below) / 2
        search = _Search(problem, target)
        better = search.run()
        if better is None:
            below, least = target, (target if search.nodes < NODES and least == below else least)
        else:
            found, above = better, max(_rank_loads(problem, better))
    return found, min(least, above)


def _rank_loads(problem: _Problem, bounds: Sequence[int]) -> list[float]:
    edges, totals = [0, *bounds, problem.blocks], [0.0] * problem.stages
    for chunk, (start, end) in enumerate(pairwise(edges)):
        totals[chunk % problem.stages] += problem.cost(chunk, start, end)
    return totals


class _Search:
    """Branch and bound for one target of the largest load. Chunks with about a fair share of the cost are tried first; in
    the last round only the longest chunk that fits is tried.

    Dead ends are remembered by the cost that each rank has spent. A branch is cut if the remaining layers exceed the
    capacity that the ranks have left.
    """

    def __init__(self, problem: _Problem, target: float) -> None:
        self.problem = problem
        self.limits = (target, *problem.sizes)
        self.fair = problem.total / problem.chunks
        self.nodes = 0
        self.dead: set[tuple[int, int, tuple[float, ...]]] = set()
        self.spent = [[0.0] * problem.stages for _ in self.limits]

    def run(self) -> list[int] | None:
        """The cuts of a split within the target; None if there is none, or if none was found in `NODES` nodes."""
        found = self._from(0, 0)
        return None if found is None else found[:-1]

    def _from(self, chunk: int, start: int) -> list[int] | None:
        if chunk == self.problem.chunks:
            return []
        key = (chunk, start, tuple(self.spent[0]))
        if self.nodes >= NODES or key in self.dead or not self._can_hold(start):
            return None
        self.nodes += 1
        for end in self._ends(chunk, start):
            if not self._keeps(chunk, start, end):
                continue
            self._spend(chunk, start, end, 1.0)
            rest = self._from(chunk + 1, end)
            self._spend(chunk, start, end, -1.0)
            if rest is not None:
                return [end, *rest]
        self.dead.add(key)
        return None

    def _ends(self, chunk: int, start: int) -> Iterator[int]:
        """The ends to try for a chunk. In the last round only the longest chunk within the limits: a shorter one leaves
        more to others.
        """
        ends = self.problem.ends_of(chunk, start)
        if chunk < self.problem.chunks - self.problem.stages:
            cost = partial(self.problem.cost, chunk, start)
            yield from sorted(ends, key=lambda end: abs(cost(end) - self.fair))
        elif isfinite(self.limits[0]):
            yield from (longest,) if (longest := self._longest(chunk, start, ends)) else ()
        else:
            yield from sorted(ends, key=lambda end: abs(self.problem.cost(chunk, start, end) - self.fair))

    def _longest(self, chunk: int, start: int, ends: range) -> int | None:
        return next((end for end in reversed(ends) if self._keeps(chunk, start, end)), None)

    def _keeps(self, chunk: int, start: int, end: int) -> bool:
        rank = chunk % self.problem.stages
        return all(
            spent[rank] + self.problem.cost(chunk, start, end, kind) <= limit
            for kind, (spent, limit) in enumerate(zip(self.spent, self.limits, strict=True))
        )

    def _spend(self, chunk: int, start: int, end: int, sign: float) -> None:
        for kind, spent in enumerate(self.spent):
            spent[chunk % self.problem.stages] += sign * self.problem.cost(chunk, start, end, kind)

    def _can_hold(self, start: int) -> bool:
        for kind, (spent, limit) in enumerate(zip(self.spent, self.limits, strict=True)):
            left = self.problem.sums[kind][-1] - self.problem.sums[kind][start] + self.problem.ends[kind][1]
            if left > sum(limit - one for one in spent) * (1 + 1e-12):
                return False
        return True
