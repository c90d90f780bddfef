"""Outputs of the single-device model that pipeline stages are compared with, computed one microbatch at a time.

The calls of every module that some stage lacks are recorded, so that absent modules can answer with zeros of the right shapes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.inputs.example import caching
from shardproof.planner.inputs.run_modes import cache_in, has_cache, has_unknown_cache, takes
from shardproof.verify.run.compare.tensors import LIMIT, relative_error
from shardproof.verify.run.gradient_questions import uneven_square
from shardproof.verify.run.held_state import HeldState
from shardproof.verify.run.inputs import Inputs, inputs
from shardproof.verify.run.observed import NotComparableError, UnknownCacheError, logits
from shardproof.verify.stages.case import KEPT
from shardproof.verify.stages.record import Record, recorded
from shardproof.verify.stages.stage_layout import StageLayout


@dataclass(slots=True)
class SingleDeviceOutputs:
    """All that is compared.

    `gradients` are summed over the microbatches; `steps` are the recorded calls of prefill and decode.
    """

    logits: list[torch.Tensor] = field(default_factory=list)
    padded: list[torch.Tensor] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    record: Record = field(default_factory=Record)
    steps: list[Record] = field(default_factory=list)
    decoded: torch.Tensor | None = None
    positions: bool | None = None
    """Whether left-padded rows are given `position_ids`; None before that was tried."""
    kept: torch.Tensor | None = None
    kept_record: Record = field(default_factory=Record)
    training: "SingleDeviceOutputs | None" = None
    """Logits, losses and gradients in training mode, where they differ from those in evaluation."""
    unasked: dict[str, Exception] = field(default_factory=dict)
    """The questions that the single-device model cannot answer itself, with what it raised."""


def batch(model: nn.Module, microbatches: int) -> tuple[Inputs, ...]:
    """The inputs of each microbatch; each has a padded row."""
    return tuple(inputs(model, seed=seed) for seed in range(microbatches))


def joined(parts: Sequence[Inputs]) -> Inputs:
    """All microbatches as one batch, one below the other."""
    return Inputs(
        parts[0].name,
        torch.cat([part.ids for part in parts]),
        {name: torch.cat([part.more[name] for part in parts]) for name in parts[0].more},
        torch.cat([part.mask for part in parts]),
        torch.cat([part.ragged for part in parts]),
        torch.cat([part.target_mask for part in parts]),
    )


def loss_of(given: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of the next token; a mean square where the model gives no logits."""
    if given.ndim == 3 and ids.numel() and given.shape[-1] > int(ids.max()):
        text = given[:, -ids.shape[1] :]  # some models give logits of an image in front
        return nn.functional.cross_entropy(text[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return uneven_square(given)


def outputs_of(single: PreTrainedModel, layout: StageLayout, parts: Sequence[Inputs]) -> SingleDeviceOutputs:
    """The outputs of the single-device model for all microbatches; its `.grad` fields are cleared afterwards."""
    want, began = SingleDeviceOutputs(), HeldState(single)
    more = caching(single, False)
    for part in parts:
        _step(single, layout, part, want)
    began.restore()
    for part in parts if takes(single, "attention_mask") else ():
        with torch.no_grad():
            want.padded.append(_padded(single, part, want, more))
    began.restore()
    if not all(given.isfinite().all() for given in want.padded):  # nothing to compare with
        want.padded = []
    _take_gradients(single, want)
    want.training = _in_training(single, layout, parts, want, began)
    began.restore()
    if takes(single, "logits_to_keep"):
        with torch.no_grad(), recorded(single, layout.named) as want.kept_record:
            want.kept = logits(single, **joined(parts).whole(), **more, logits_to_keep=KEPT)
    began.restore()
    try:
        if has_unknown_cache(single):
            raise UnknownCacheError("it takes use_cache, and no cache by a name that is known")
        if has_cache(single):
            _decode_alone(single, layout, joined(parts), want)
    except Exception as error:  # a model that does not decode token by token: nothing to compare
        want.unasked["cached decode"] = error
    finally:
        began.restore()
    return want


def _step(single: PreTrainedModel, layout: StageLayout, part: Inputs, want: SingleDeviceOutputs) -> None:
    """One microbatch, forward and backward."""
    with recorded(single, layout.named) as want.record:
        given = logits(single, **part.whole(), **caching(single, False))
    loss = loss_of(given, part.ids)
    loss.backward()
    want.logits.append(given.detach())
    want.losses.append(loss.detach())


def _take_gradients(single: PreTrainedModel, want: SingleDeviceOutputs) -> None:
    for name, value in single.named_parameters():
        want.gradients[name] = torch.zeros_like(value) if value.grad is None else value.grad
    single.zero_grad(set_to_none=True)


def _in_training(
    single: PreTrainedModel,
    layout: StageLayout,
    parts: Sequence[Inputs],
    want: SingleDeviceOutputs,
    began: HeldState,
) -> SingleDeviceOutputs | None:
    """The outputs in training mode, where code takes another path there; None where it does not, or where one device cannot be
    compared with itself, which `want.unasked` says.
    """
    before = single.training
    single.train()
    try:
        answers = []
        for _ in range(2):
            with torch.no_grad():
                answers.append(logits(single, **parts[0].whole(), **caching(single, False)))
            began.restore()
            single.train()
        one, other = answers
        if not torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
            raise NotComparableError("training draws random numbers, which are not compared")
        if relative_error(one, want.logits[0]) <= LIMIT:
            return None
        found = SingleDeviceOutputs()
        for part in parts:
            _step(single, layout, part, found)
        _take_gradients(single, found)
        return found
    except Exception as error:  # a model that does not run in training mode: nothing to compare with
        single.zero_grad(set_to_none=True)
        want.unasked["training"] = error
        return None
    finally:
        single.train(before)


def _padded(single: PreTrainedModel, part: Inputs, want: SingleDeviceOutputs, more: dict[str, bool]) -> torch.Tensor:
    """The logits of a left-padded microbatch, with `position_ids` where the model takes them."""
    if want.positions is None:
        want.positions = takes(single, "position_ids") and not part.encoded
        if want.positions:
            try:
                return logits(single, **padded(part, positions=True), **more)
            except Exception:  # positions of another shape (several axes) are not compared
                want.positions = False
    return logits(single, **padded(part, positions=want.positions), **more)


def padded(asked: Inputs, *, positions: bool) -> dict[str, torch.Tensor]:
    """The arguments of a left-padded forward; positions count the tokens that are not masked, with one gap.

    Without the gap a stage that ignores the positions would give the same result: relative positions are invariant under a shift.
    """
    arguments = asked.whole() | asked.masking(asked.mask)
    if positions:
        late = torch.arange(asked.mask.shape[1], device=asked.mask.device) >= asked.prompt
        arguments["position_ids"] = (asked.mask.cumsum(-1) - 1).clamp_min(0) + late
    return arguments


def steps(asked: Inputs) -> Iterator[dict[str, torch.Tensor]]:
    """The arguments of a prefill with the prompt, then of one token after the other."""
    yield asked.first(asked.prompt)
    yield from map(asked.next, range(asked.prompt, asked.ids.shape[1]))


@torch.no_grad()
def _decode_alone(single: PreTrainedModel, layout: StageLayout, asked: Inputs, want: SingleDeviceOutputs) -> None:
    """Decode on one device. Stages must match the full recompute, unless the model's own decoding differs from it."""
    cache: dict[str, object] = {}
    given = []
    for arguments in steps(asked):
        with recorded(single, layout.named) as record:
            output = single(**arguments, **caching(single, True), **cache)
        cache = cache_in(single, output)
        if not cache:
            raise NotComparableError("it returns no cache when it is asked for one")
        given.append(output[0])
        want.steps.append(record)
    decoded, recomputed = torch.cat(given, dim=1), torch.cat(want.logits)
    if decoded.shape != recomputed.shape:
        raise NotComparableError("its decoding gives logits of another shape than its forward")
    want.decoded = recomputed if relative_error(decoded, recomputed) <= LIMIT else decoded
