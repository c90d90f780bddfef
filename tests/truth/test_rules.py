"""The rule table against arithmetic: small integers in float64, every placement of every input, degrees 2 and 3."""

import pytest

from shardproof.planner.ir.placement import R
from shardproof.planner.propagation.rules.registry import ruled
from tests.truth.cases import CASES, UNEVEN, UNTESTABLE
from tests.truth.harness import Case, rows, rules_of

ALL = (*CASES, *UNEVEN)


def test_every_rule_is_held_or_listed() -> None:
    held = {name for case in CASES for name in rules_of(case)}
    assert held | UNTESTABLE.keys() == ruled()
    assert not held & UNTESTABLE.keys()


def test_no_name_twice() -> None:
    names = [case.name for case in ALL]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name", ["linear", "matmul", "sum", "view that keeps a dim", "embedding", "zeros", "transpose"]
)
def test_uneven_shards_are_claimed(name: str) -> None:
    case = next(case for case in UNEVEN if case.name == f"uneven {name}")
    assert any(row.claimed is not None and set(row.inputs) != {R} for row in rows(case, 2))


@pytest.mark.parametrize("degree", [2, 3])
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_every_claim_is_true(case: Case, degree: int) -> None:
    for row in rows(case, degree):
        if row.claimed is not None:
            assert row.holds, f"{[*map(str, row.inputs)]}: {row.claimed} is claimed, true is {[*map(str, row.true)]}"


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_whole_inputs_give_whole_outputs(case: Case) -> None:
    assert [row.claimed for row in rows(case, 2) if set(row.inputs) == {R}] == [R]


COVERED = "the first value is written over, so where it lay does not matter"
CONSTANT = "a constant does not depend on the value that it is made like"
OWN = "the mask or the indices are made from the partial sum itself"
BY_POSITION = "queries may be split by position where nothing depends on it, which no style does"
PACKED = "true of packed blocks alone, which the rule does not tell"
WHOLE = "linear on whole numbers, of which no partial sum is made"
COARSE = "the rule asks for whole inputs: no model shards these"
NEAR = "no window reaches over the border of a part here, which the rule leaves undecided"
SHORT = "the index is all zeros here, so one part of a shorter index is as good as another"

UNCLAIMED = {
    "where": "the condition is a constant here, so one branch is never read",
    "layer_norm": "linear in the weight alone, which no plan makes partial",
    "rms_norm": "linear in the weight alone, which no plan makes partial",
    "xlogy": "linear in the first factor, which no plan makes partial",
    "xlog1py": "linear in the first factor, which no plan makes partial",
    "gather": "indices made from the local size hold the same rows by chance",
    "eye": "a part times a small identity is that part",
    "native_group_norm": "the size of the batch is an argument of the op",
    "new_zeros": "a partial sum plus zeros: the propagation knows the zeros",
    "_is_all_true": "the answer is that of every part by chance",
    "zeros": PACKED, "ones": PACKED, "full": PACKED, "new_ones": PACKED, "new_full": PACKED, "repeat": PACKED,
    "uneven zeros": "a partial sum plus zeros: the propagation knows the zeros",
    "masked_fill zero": OWN, "scatter": OWN, "scatter_add": OWN,
    "copy": COVERED,
    "ones_like": CONSTANT, "full_like": CONSTANT, "fill": CONSTANT,
    "attention mask": BY_POSITION, "attention grouped": BY_POSITION, "uneven attention": BY_POSITION,
    "lshift": WHOLE, "rshift": WHOLE, "bitwise_left_shift": WHOLE, "bitwise_right_shift": WHOLE,
    "max_pool1d": NEAR, "max_pool3d": NEAR, "avg_pool3d": NEAR, "upsample 1": NEAR, "upsample 2": NEAR, "upsample 3": NEAR,
    "gather short": SHORT, "scatter_add short": SHORT,
    "searchsorted": COARSE, "histc": COARSE,
}  # fmt: skip
"""Cases with true rows that are not claimed, with the reason."""


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_true_rows_are_claimed(case: Case) -> None:
    missed = [[*map(str, row.inputs)] for row in rows(case, 2) if row.claimed is None and row.true]
    assert bool(missed) is (case.name in UNCLAIMED), missed
