"""Whose an exception of a rank is: the model's, or shardproof's."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import shardproof
from shardproof.verify.run.observed import Observed
from shardproof.verify.run.outcome import failure_of
from shardproof.verify.run.questions import _drop_infinite

SOURCE = "def call(function):\n    return function()\n"


def called_by_us(function: Callable[[], object]) -> BaseException:
    """What a function raises that a file of shardproof calls."""
    names: dict[str, Callable[..., object]] = {}
    exec(compile(SOURCE, str(Path(shardproof.__file__).parent / "verify" / "run" / "any.py"), "exec"), names)
    with pytest.raises(RuntimeError) as caught:
        names["call"](function)
    return caught.value


def test_what_torch_raises_for_us_is_ours() -> None:
    error = called_by_us(partial(torch.mm, torch.zeros(2, 2), torch.zeros(3, 3)))
    assert failure_of(error, stage="forward", module="", sharded=True).ours


def test_what_autograd_raises_is_the_models() -> None:
    weight = torch.zeros(2, 2, requires_grad=True)
    weight.register_hook(partial(torch.mm, mat2=torch.zeros(3, 3)))
    error = called_by_us((weight * 2).sum().backward)
    assert not failure_of(error, stage="backward", module="", sharded=True).ours


def test_numbers_that_are_not_finite_are_the_models() -> None:
    asked = Observed()
    asked.values["logits"] = torch.full((2,), torch.inf)
    with pytest.raises(FloatingPointError) as caught:
        _drop_infinite(asked, set())
    assert not failure_of(caught.value, stage="forward", module="", sharded=False).ours
