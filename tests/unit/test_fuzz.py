"""A slice of the random models: the proof and the ranks do not contradict each other."""

import pytest

from benchmarks.fuzz import Pair, is_failure, judged, pairs

SEED = 11
PAIRS = 8


@pytest.mark.parametrize("pair", list(pairs(PAIRS, SEED)), ids=lambda pair: "; ".join(pair.steps) or "no step")
def test_the_proof_and_the_ranks_do_not_contradict_each_other(pair: Pair) -> None:
    assert not is_failure(judged(pair))


@pytest.mark.parametrize(
    ("step", "found"), [("halves", "not proved, confirmed"), ("halves product", "refuted, refuted")]
)
def test_a_cut_that_a_cat_undoes_is_not_accused(step: str, found: str) -> None:
    assert judged(Pair((step,), (("layers.*.down", "rowwise"), ("layers.*.up", "colwise")))) == found


def test_the_same_seed_gives_the_same_pairs() -> None:
    assert list(pairs(20, 3)) == list(pairs(20, 3))
    assert list(pairs(20, 3)) != list(pairs(20, 4))
