"""The placement algebra: its written form parses back, and local shapes are what a split gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardproof.planner.ir.placement import P, Partial, Placement, R, Shard, Unknown, local_shape, parse

placements: st.SearchStrategy[Placement] = st.one_of(
    st.just(R),
    st.builds(Shard, st.integers(0, 9), st.integers(1, 9)),
    st.builds(Partial, st.from_regex(r"[a-z]+", fullmatch=True)),
    st.builds(Unknown, st.text()),
)


@given(placements)
def test_the_written_form_parses_back(placement: Placement) -> None:
    assert parse(str(placement)) == placement


@pytest.mark.parametrize(
    ("placement", "text"),
    [(R, "R"), (P, "P(sum)"), (Shard(0), "S(0)"), (Shard(1, blocks=2), "S(1/2)"), (Unknown("no rule"), "?(no rule)")],
)
def test_the_written_forms(placement: Placement, text: str) -> None:
    assert str(placement) == text


@pytest.mark.parametrize("text", ["", "r", "S", "S(-1)", "S(0/0)", "S(0/)", "P()", "Replicate"])
def test_what_is_no_placement_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no placement|at least one block"):
        parse(text)


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    dim=st.integers(0, 3),
    blocks=st.integers(1, 3),
    degree=st.integers(1, 4),
)
def test_the_local_parts_make_the_whole(shape: list[int], dim: int, blocks: int, degree: int) -> None:
    dim %= len(shape)
    whole = (*shape[:dim], shape[dim] * blocks * degree, *shape[dim + 1 :])
    local = local_shape(whole, Shard(dim, blocks), degree)
    assert local[dim] * degree == whole[dim]
    assert (*local[:dim], *local[dim + 1 :]) == (*whole[:dim], *whole[dim + 1 :])


@given(shape=st.lists(st.integers(1, 9), max_size=4).map(tuple), degree=st.integers(1, 4))
def test_unsplit_tensors_keep_their_shape(shape: tuple[int, ...], degree: int) -> None:
    assert all(local_shape(shape, placement, degree) == shape for placement in (R, P, Unknown("why")))


@pytest.mark.parametrize(
    ("shape", "placement", "message"),
    [
        ((4, 6), Shard(2), r"S(2) needs more dims than the shape [4, 6] has."),
        ((4, 6), Shard(1), r"dim 1 of [4, 6] has too few elements for 4 ranks."),
        ((4, 6), Shard(0, blocks=2), r"dim 0 of [4, 6] has too few elements for 4 ranks."),
        ((4, 6), Shard(0, blocks=3), r"dim 0 of [4, 6] does not divide into 3 equal blocks."),
    ],
)
def test_what_does_not_divide_is_refused(shape: tuple[int, ...], placement: Shard, message: str) -> None:
    with pytest.raises(ValueError, match="dim") as raised:
        local_shape(shape, placement, 4)
    assert str(raised.value) == message


def test_a_negative_dim_is_refused() -> None:
    with pytest.raises(ValueError, match="counts dims from zero, got dim -1"):
        Shard(-1)
