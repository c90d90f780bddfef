"""The models that training questions are asked of: the twin on one device, and the same twin sharded, each fresh."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from transformers import PreTrainedModel

from shardproof.planner.weights.shards import whole
from shardproof.verify.run.compare.outputs import compared
from shardproof.verify.run.compare.tensors import Comparison
from shardproof.verify.run.gradient_questions import model_loss
from shardproof.verify.run.inputs import Inputs, inputs
from shardproof.verify.run.observed import Observed
from shardproof.verify.run.reference import State, checkpoint_form, freeze_as, sharded_model, single_device
from shardproof.verify.stages.case import Case
from shardproof.verify.stages.exact import Wide

T = TypeVar("T")

STEPS = 3
"""Batches, and steps of the optimizer."""


class NotAskedError(RuntimeError):
    """A question that cannot be asked of this model: one device cannot answer it either."""


class NothingToAskError(RuntimeError):
    """A question about something that the model does not have, or says that it does not do."""


class WaitsForeverError(RuntimeError):
    """A call on one rank that waits for the other ranks in a collective."""


class AnotherRankError(RuntimeError):
    """Another rank has raised where this one has not."""


@dataclass(frozen=True, slots=True)
class TrainingBench:
    """One rank's models and batches; the batches are the same on every rank."""

    case: Case
    rank: int
    device: torch.device
    single: PreTrainedModel
    state: State
    batches: tuple[Inputs, ...]

    def alone(self) -> PreTrainedModel:
        """A fresh model on one device, in training mode."""
        made = copy.deepcopy(self.single)
        made.zero_grad(set_to_none=True)
        made.train()
        return made

    def sharded(self) -> PreTrainedModel:
        """A fresh model that the client has sharded, in training mode. A collective."""
        made = sharded_model(self.case, self.state)
        nn.Module.to(made, self.device)
        freeze_as(made, self.single)
        made.train()
        return made


def training_bench(case: Case, *, rank: int, device: torch.device) -> TrainingBench:
    """The bench of one rank."""
    single = single_device(case, device)
    batches = tuple(inputs(single, seed=case.seed + step) for step in range(STEPS))
    return TrainingBench(case, rank, device, single, checkpoint_form(case, single), batches)


def on_every_rank(bench: TrainingBench, do: Callable[[], T]) -> T:
    """What this rank gets where every rank gets something; it raises on every rank where it raises on one. A collective.

    A rank that goes on alone would wait for the others in its next collective until the time is over.
    """
    got: list[T] = []
    error: Exception | CheckpointException | None = None
    try:
        got.append(do())
    except (Exception, CheckpointException) as raised:
        error = raised
    every: list[bool | None] = [None] * bench.case.tp
    dist.all_gather_object(every, error is None)
    if error is not None:
        raise error
    if not all(every):
        raise AnotherRankError("another rank raises")
    return got[0]


def on_one_device(do: Callable[[], T]) -> T:
    """What one device answers. Raises `NotAskedError` where it raises, since there is nothing to compare with then."""
    try:
        return do()
    except (NotAskedError, NothingToAskError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise NotAskedError(f"one device raises {type(error).__name__}: {lines[0][:160]}") from error


def backward(model: PreTrainedModel, batch: Inputs, *, exact: bool = True) -> torch.Tensor:
    """Forward and backward of one batch; the loss. `exact` computes in float64 throughout."""
    if not exact:
        loss = model_loss(model, batch)
        loss.backward()
        return loss.detach()
    with Wide():
        loss = model_loss(model, batch)
        loss.backward()
    return loss.detach()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter's gradient, whole; zeros where there is none. A collective on a sharded model."""
    return {
        name: torch.zeros(value.shape, dtype=value.dtype) if value.grad is None else whole(value.grad.detach()).clone()
        for name, value in model.named_parameters()
        if value.requires_grad
    }


def worst_gradient(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]) -> Comparison:
    """The gradient that is furthest off, relative to the gradients of its module."""
    both = (Observed(gradients={"gradient": dict(given)}) for given in (got, want))
    every = compared(next(both), next(both), {})
    return worst(every)


def worst(every: Iterable[Comparison]) -> Comparison:
    """The comparison furthest above its limit; a NaN is the furthest. One that is right where there is none."""
    return max(every, key=lambda one: (not one.right, one.error), default=Comparison("nothing", 0.0, 0.0))
