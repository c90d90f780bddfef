"""Other forms of the same step: mixed precision, activation checkpointing, and a compiled model."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from transformers import PreTrainedModel

from shardproof.planner.ir.plan import generic
from shardproof.verify.run.compare.tensors import relative_error
from shardproof.verify.run.training.asking import Measured, TrainingQuestion, Way
from shardproof.verify.run.training.bench import (
    NotAskedError,
    NothingToAskError,
    TrainingBench,
    backward,
    gradients,
    on_every_rank,
    on_one_device,
)
from shardproof.verify.run.training.choices import Choices
from shardproof.verify.run.training.steps import same_gradients

_ROUNDINGS = 4.0
"""The ranks may be so many times as far from the exact gradient as one device is, in the same precision."""
_MOST_ROUNDED = 0.2
"""A gradient that one device itself gets this wrong in low precision says nothing."""
_FEW = 8
"""Gradients of fewer numbers are too few to tell a rounding from a fault."""
_AS_WRITTEN = 1e-4
"""Relative. A step that is compiled, or computed again, computes in float32 where the model says so."""


def _autocast(bench: TrainingBench) -> Measured:
    """A float32 model under autocast to bfloat16: as near to the exact gradients as one device is, with the same experts."""
    exact, choices = bench.alone(), Choices()
    with choices.kept():
        on_one_device(lambda: backward(exact, bench.batches[0]))
    alone, ours = bench.alone().float(), bench.sharded().float()
    with choices.taken():
        on_one_device(lambda: _backward_in_bfloat16(alone, bench))
    with choices.taken():
        _backward_in_bfloat16(ours, bench)
    truth, want, got = gradients(exact), gradients(alone), gradients(ours)
    judged, compared = _roundings(truth, want, got)
    if not judged:
        raise NotAskedError("in bfloat16 one device itself is too far from its exact gradients to compare with")
    place = max(judged, key=lambda name: judged[name])
    note = f"at most {judged[place]:.1f} times the rounding of one device; {compared} of {len(truth)} gradients judged"
    return Measured(judged[place] / 10, _ROUNDINGS / 10, place, note)


Gradients = Mapping[str, torch.Tensor]


def _roundings(truth: Gradients, want: Gradients, got: Gradients) -> tuple[dict[str, float], int]:
    """By name, how far the ranks' gradient is from the exact one, in roundings of one device; and how many gradients were judged.

    Of a few numbers one device's error is chance: it may be near zero. So they are judged together with those of the same
    parameter in other layers, and not at all where these are few too. The training step in float64 judges every one.
    """
    together: dict[str, list[str]] = {}
    for name, value in truth.items():
        together.setdefault(name if value.numel() >= _FEW else generic(name), []).append(name)
    largest = max((float(value.abs().max()) for value in truth.values() if value.numel()), default=0.0)
    judged, compared = {}, 0
    for names in together.values():
        one, alone, ranks = (torch.cat([of[name].flatten() for name in names]) for of in (truth, want, got))
        rounding = relative_error(alone, one, floor=largest * 1e-3)
        if one.numel() >= _FEW and rounding <= _MOST_ROUNDED:
            least = 2 * torch.finfo(torch.bfloat16).eps
            judged[names[0]] = relative_error(ranks, one, floor=largest * 1e-3) / max(rounding, least)
            compared += len(names)
    return judged, compared


def _backward_in_bfloat16(model: PreTrainedModel, bench: TrainingBench) -> None:
    with torch.autocast(bench.device.type, dtype=torch.bfloat16):
        backward(model, bench.batches[0], exact=False)


def _checkpointed(reentrant: bool, bench: TrainingBench) -> Measured:
    """The gradients with activations computed again in the backward."""
    if not getattr(bench.single, "supports_gradient_checkpointing", False):
        raise NothingToAskError(f"{type(bench.single).__name__} says that it does not support gradient checkpointing")

    def run(model: PreTrainedModel) -> None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()  # a frozen input ends a reentrant graph
        backward(model, bench.batches[0], exact=False)

    return _as_written(bench, run)


def _compiled(bench: TrainingBench) -> Measured:
    """The gradients of the model as `torch.compile` captures it, backward included; no code is generated.

    Capturing takes most of the time of all questions. So one device captures only where the ranks' gradients are not those of
    its plain step.
    """
    ours = bench.sharded()
    raised: Exception | None = None
    try:
        on_every_rank(bench, lambda: _backward_compiled(ours, bench))
    except Exception as error:
        raised = error
    if raised is None:
        plain = bench.alone()
        on_one_device(lambda: backward(plain, bench.batches[0], exact=False))
        measured = _apart(ours, plain)
        if on_every_rank(bench, lambda: measured.right):
            return measured
    alone = bench.alone()
    on_one_device(lambda: _backward_compiled(alone, bench))
    if raised is not None:
        raise raised
    return _apart(ours, alone)


def _as_written(bench: TrainingBench, run: Callable[[PreTrainedModel], object]) -> Measured:
    """The gradients of a step in the precisions that the model's code names."""
    alone, ours = bench.alone(), bench.sharded()
    on_one_device(lambda: run(alone))
    run(ours)
    return _apart(ours, alone)


def _apart(ours: PreTrainedModel, alone: PreTrainedModel) -> Measured:
    """The gradient of the ranks that is furthest from that of one device. A collective."""
    want, got = gradients(alone), gradients(ours)
    largest = max((float(value.abs().max()) for value in want.values() if value.numel()), default=0.0)
    errors = {name: relative_error(got[name], value, floor=largest * 1e-3) for name, value in want.items()}
    place = max(errors, key=lambda name: errors[name], default="")
    return Measured(errors.get(place, 0.0), _AS_WRITTEN, place)


def _backward_compiled(model: PreTrainedModel, bench: TrainingBench) -> None:
    torch._dynamo.reset()
    try:
        model.compile(backend="aot_eager")
        backward(model, bench.batches[0], exact=False)
    finally:
        torch._dynamo.reset()


def _uncompiled(bench: TrainingBench) -> Measured:
    def run(model: PreTrainedModel) -> None:
        backward(model, bench.batches[0])

    return same_gradients(bench, run, run)


MIXED_PRECISION = TrainingQuestion("mixed precision", "TR604", (Way("torch.autocast to bfloat16", _autocast),))
_NOT_REENTRANT = Way("gradient_checkpointing_enable({'use_reentrant': False})", partial(_checkpointed, False))
_KEPT = Way("no gradient checkpointing", _uncompiled)
CHECKPOINTING = TrainingQuestion("activation checkpointing", "TR606", (_NOT_REENTRANT, _KEPT))
REENTRANT = TrainingQuestion(
    "reentrant checkpointing",
    "TR606",
    (
        Way("gradient_checkpointing_enable({'use_reentrant': True})", partial(_checkpointed, True)),
        _NOT_REENTRANT,
        _KEPT,
    ),
)
COMPILE = TrainingQuestion(
    "torch.compile", "TR607", (Way("model.compile()", _compiled), Way("no torch.compile", _uncompiled))
)
