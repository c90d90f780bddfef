"""What a run saw of a model: its answers to each question, and why there is none."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._pytree import tree_flatten
from transformers import PreTrainedModel

from shardproof.planner.inputs.example import caching
from shardproof.planner.weights.shards import whole
from shardproof.verify.run.compare.module_activations import ModuleActivations
from shardproof.verify.run.inputs import Inputs


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of greedy generation, `[batch, steps]`. `lead`: first minus second logit, relative to the largest of the step."""

    chosen: torch.Tensor
    lead: torch.Tensor


@dataclass(slots=True)
class Observed:
    """The answers of one model.

    `values` are by name (logits, loss, ...), `gradients` by pass and then by parameter. `stage` is the current question and
    `inside` the module that runs, for the report of an exception. `unasked` are the questions that the single-device model
    cannot answer itself, with what it raised.
    """

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    tokens: dict[str, Tokens] = field(default_factory=dict)
    activations: list[ModuleActivations] = field(default_factory=list)
    unasked: dict[str, Exception] = field(default_factory=dict)
    stage: str = "loading"
    inside: str = ""
    trains: bool | None = None
    """Whether gradients need training mode, because the single-device model gives none in evaluation mode; None: not known yet.
    """
    own_loss: bool | None = None
    """Whether the model's own loss is asked for; None: not known yet, and it is where the single-device model gives one."""
    refused: RuntimeError | None = None
    """Autograd's refusal of an in-place operation; the backward was then repeated on copies of the outputs."""


Question = Callable[[PreTrainedModel, Inputs, Observed], None]


class NotComparableError(ValueError):
    """A question that one device answers differently from one time to the next, or not at all."""


class UnknownCacheError(RuntimeError):
    """A model that keeps something between forwards, and hands it on by a name that is not known: the question is not asked."""


def logits(model: nn.Module, **given: object) -> torch.Tensor:
    """The model's first output, whole; of a group of tensors (one for each of several heads) all their elements in one row."""
    first = model(**given)[0]
    if isinstance(first, torch.Tensor):
        return whole(first)
    leaves = [whole(leaf) for leaf in tree_flatten(first)[0] if isinstance(leaf, torch.Tensor)]
    return torch.cat([leaf.flatten() for leaf in leaves])


def forward_logits(model: PreTrainedModel, inputs: Inputs, **more: object) -> torch.Tensor:
    return logits(model, **inputs.whole(), **caching(model, False), **more)
