"""Whose an exception of a rank is: the model's, or shardproof's."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import shardproof
from shardproof.verify.run.outcome import failure_of

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
