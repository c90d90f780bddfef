"""Two backwards without `zero_grad`: a wrong sum is told from rounding at every precision, by the ranks' own first gradient."""

import pytest
import torch

from shardproof.verify.run.compare.outputs import compared
from shardproof.verify.run.compare.tensors import Comparison
from shardproof.verify.run.gradient_questions import ONCE, TWICE
from shardproof.verify.run.observed import Observed

NAME = "norm.weight"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def answers(once: torch.Tensor, twice: torch.Tensor) -> Observed:
    return Observed(gradients={ONCE: {NAME: once}, TWICE: {NAME: twice}})


def second(got: Observed, want: Observed, limit: float) -> Comparison:
    (found,) = (one for one in compared(got, want, {(ONCE, NAME): limit, (TWICE, NAME): limit}) if one.what == TWICE)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("counted", "right"), [(2.0, True), (3.0, False), (5.0, False), (0.0, False)])
def test_the_sum_of_two_backwards_is_decided_by_the_ranks_own_first(
    dtype: torch.dtype, counted: float, right: bool
) -> None:
    """The limit of the comparison with one device, half of the gradient, would let three pass for two."""
    alone = torch.randn(64, dtype=torch.float64).to(dtype)
    ranks = (alone.double() * (1 + 4 * torch.finfo(dtype).eps * torch.randn(64, dtype=torch.float64))).to(dtype)
    found = second(answers(ranks, counted * ranks), answers(alone, 2 * alone), 0.5)
    assert found.right is right
    assert right or found.factor == pytest.approx(counted / 2, abs=found.limit)


def test_a_gradient_that_one_device_does_not_repeat_is_compared_with_that_device() -> None:
    alone = torch.randn(64, dtype=torch.float64)
    found = second(answers(alone, 2 * alone), answers(alone, 2.5 * alone), 1e-8)
    assert found.error == pytest.approx(0.2)
    assert not found.right


def test_a_gradient_that_is_rounding_alone_is_measured_by_its_module() -> None:
    zero, weight = 1e-18 * torch.randn(64, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    once = {"k.bias": zero, "k.weight": weight}
    got, want = (
        Observed(gradients={ONCE: once, TWICE: {"k.bias": counted * zero, "k.weight": 2 * weight}})
        for counted in (3, 2)
    )
    assert all(one.right for one in compared(got, want, {}))
