"""What one run is asked: a model, a plan, a layout; and the inputs that every model is run on."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import nn

from planner.frontend.load import Loaded
from planner.frontend.sizes import LENGTH
from planner.frontend.twin import vocabulary
from planner.ir.plan import Plan

BATCH = 2
PROMPT = LENGTH - 4
"""Tokens that are prefilled; the rest are decoded one by one."""


class Applied(StrEnum):
    """Who applies the plan's styles to the model."""

    CLIENT = "Transformers"
    OURS = "shardproof's own application of the styles"


class Schedule(StrEnum):
    """The schedules of `torch.distributed.pipelining` that stages are run by; only the last takes several chunks a rank."""

    GPIPE = "GPipe"
    ONE_F_ONE_B = "1F1B"
    INTERLEAVED = "interleaved 1F1B"


@dataclass(frozen=True, slots=True)
class Staging:
    """How a pipeline is cut and run: `bounds` are the first layers of chunks 1, 2, ..., an even split where there are none;
    chunk `c` lies on rank `c % pp`, and every rank holds `rounds` of them.

    `overlap` layers more than its own each chunk runs at its end (-1: one less); anything but 0 is a fault to be found.
    """

    schedule: Schedule = Schedule.GPIPE
    rounds: int = 1
    bounds: tuple[int, ...] = ()
    overlap: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One run: `loaded` is the twin (it pickles, once its module is imported), `plan` the plan under test.

    With `weights`, `loaded` is the real model, and its checkpoint is run in its own dtype.
    """

    loaded: Loaded
    plan: Plan
    tp: int = 1
    pp: int = 1
    ep: int = 1
    seed: int = 0
    weights: bool = False
    applied: Applied = Applied.CLIENT
    staging: Staging = Staging()


@dataclass(frozen=True, slots=True)
class Inputs:
    """Token ids `[BATCH, LENGTH]`, the same on every rank; a mask with rows padded on the left by 0 and 3 tokens, and
    one with rows padded on the right by 2 and 5.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    ragged: torch.Tensor


def inputs(model: nn.Module, *, seed: int = 0) -> Inputs:
    """Random inputs for a model, on its device."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary(model), (BATCH, LENGTH), generator=generator)
    mask, ragged = torch.ones(2, BATCH, LENGTH, dtype=torch.long)
    mask[1:, :3] = 0
    ragged[0, -2:] = 0
    ragged[1, -5:] = 0
    return Inputs(ids.to(device), mask.to(device), ragged.to(device))


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's forward takes this keyword."""
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(type(model).forward).parameters
    return name in parameters
