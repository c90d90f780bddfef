"""The split of layers over stages, against every split there is."""

from itertools import combinations
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardproof.planner.layouts.balance import Costs, Room, balance, loads

COST = st.integers(1, 20).map(float)


def exhaustive(
    costs: Costs, stages: int, rounds: int, rooms: tuple[Room, ...] = (), cuts: set[int] | None = None
) -> float:
    """The least largest load of all splits."""
    places = [at for at in range(1, len(costs.layers)) if cuts is None or at in cuts]
    best = inf
    for bounds in combinations(places, stages * rounds - 1):
        if all(max(loads(room.takes, bounds, stages)) <= room.size for room in rooms):
            best = min(best, max(loads(costs, bounds, stages)))
    return best


@settings(deadline=None, max_examples=150)
@given(st.lists(COST, min_size=4, max_size=11), COST, COST, st.integers(1, 4))
def test_contiguous_stages_are_exact(layers: list[float], before: float, after: float, stages: int) -> None:
    costs = Costs(tuple(layers), before, after)
    split = balance(costs, stages=stages)
    assert split.largest == exhaustive(costs, stages, 1) == split.least
    assert split.largest <= split.even
    assert split.loads == loads(costs, split.bounds, stages)


@settings(deadline=None, max_examples=100)
@given(st.lists(COST, min_size=6, max_size=11), COST, COST, st.sampled_from([(2, 2), (3, 2), (2, 3)]))
def test_interleaved_stages_are_within_a_hundredth(
    layers: list[float], before: float, after: float, layout: tuple[int, int]
) -> None:
    stages, rounds = layout
    costs = Costs(tuple(layers), before, after)
    split = balance(costs, stages=stages, rounds=rounds)
    best = exhaustive(costs, stages, rounds)
    assert len(split.bounds) == stages * rounds - 1
    assert best <= split.largest <= 1.01 * best
    assert split.least <= best


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(COST, COST), min_size=4, max_size=9), st.integers(2, 3), st.integers(1, 2), st.integers(10, 60)
)
def test_limits_are_kept_or_refused(layers: list[tuple[float, float]], stages: int, rounds: int, size: int) -> None:
    costs = Costs(tuple(cost for cost, _ in layers))
    rooms = (Room(Costs(tuple(taken for _, taken in layers), 3.0, 2.0), float(size)),)
    if stages * rounds > len(layers):
        rounds = 1
    best = exhaustive(costs, stages, rounds, rooms)
    if best == inf:
        with pytest.raises(ValueError, match="keeps the limits"):
            balance(costs, stages=stages, rounds=rounds, rooms=rooms)
        return
    split = balance(costs, stages=stages, rounds=rounds, rooms=rooms)
    assert max(loads(rooms[0].takes, split.bounds, stages)) <= size
    assert split.largest <= 1.01 * best


@settings(deadline=None, max_examples=100)
@given(st.lists(COST, min_size=6, max_size=10), st.sets(st.integers(1, 9), min_size=3), st.integers(1, 3))
def test_only_allowed_cuts_are_made(layers: list[float], cuts: set[int], stages: int) -> None:
    costs = Costs(tuple(layers), 4.0, 9.0)
    allowed = {cut for cut in cuts if cut < len(layers)}
    split = balance(costs, stages=min(stages, len(allowed) + 1), cuts=allowed)
    assert set(split.bounds) <= allowed
    assert split.largest == exhaustive(costs, min(stages, len(allowed) + 1), 1, cuts=allowed)


def test_a_heavy_head_gets_fewer_layers_beside_it() -> None:
    split = balance(Costs((1.0,) * 16, before=0.0, after=3.0), stages=4)
    assert split.largest == 5.0
    assert split.even == 7.0


def test_large_problems_answer_near_their_bound() -> None:
    costs = Costs(tuple(1.0 + 3.0 * (layer % 4 == 3) for layer in range(96)), before=0.5, after=6.0)
    split = balance(costs, stages=8, rounds=3)
    assert split.largest <= 1.01 * split.least or split.largest < split.even
    assert len(split.bounds) == 23


@pytest.mark.parametrize(("stages", "rounds"), [(0, 1), (1, 0)])
def test_no_stage_is_no_pipeline(stages: int, rounds: int) -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        balance(Costs((1.0,)), stages=stages, rounds=rounds)


def test_too_few_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 layers that can be cut at 1 places make no 3 stages"):
        balance(Costs((1.0, 1.0)), stages=3)


def test_negative_costs_are_refused() -> None:
    with pytest.raises(ValueError, match="none of them negative"):
        Costs((1.0, -1.0))
