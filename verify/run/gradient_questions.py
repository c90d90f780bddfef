"""The questions of a run that train: the loss, and the gradients of parameters."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.inputs.example import caching
from shardproof.planner.inputs.run_modes import takes
from shardproof.planner.tracing.drawn import generators, generators_kept, seed_generators
from shardproof.planner.weights.shards import whole
from shardproof.verify.run.inputs import Inputs
from shardproof.verify.run.observed import NotComparableError, Observed, forward_logits
from shardproof.verify.stages.exact import copied_outputs


def ask_gradients(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Backward in evaluation mode, as the other questions; in training mode where the single-device model raises in that mode.

    A twin has no dropout, so that the two modes compute the same. A real checkpoint may have dropout, and stays in evaluation
    mode.
    """
    if into.trains is None:
        try:
            _backward_out_of_place(model, inputs, into)
            into.trains = False
            return
        except Exception as error:
            into.trains = True
            try:
                ask_gradients(model, inputs, into)
            except Exception:
                raise error from None
            return
    before = model.training
    model.train(into.trains)
    try:
        _backward_out_of_place(model, inputs, into)
    finally:
        model.train(before)


def ask_training(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Loss and gradients in training mode, under a padding mask where the forward takes one: code may branch on either.

    A twin has no dropout. A model whose loss is random all the same was refused before (`refuse_random`).
    """
    before = model.training
    model.train(True)
    try:
        with copied_outputs(model) if into.refused else nullcontext():
            loss = model_loss(model, inputs, _mask_of(model, inputs), into=into)
            model.zero_grad(set_to_none=True)
            loss.backward()
        into.values["loss in training"] = loss.detach()
        into.gradients["gradient in training"] = {
            name: _gradient(value) for name, value in model.named_parameters() if value.requires_grad
        }
    finally:
        model.zero_grad(set_to_none=True)
        model.train(before)


DRAWS = 32
"""Forwards with other random numbers: what is drawn may matter seldom (one label in ten is dropped), or never."""


def refuse_random(model: PreTrainedModel, inputs: Inputs, *, training: bool = True) -> None:
    """`NotComparableError` where the loss in training, or the logits in evaluation, depend on random numbers. Asked of a single
    device: ranks would have to agree on how often they ask.
    """
    before, device = model.training, next(model.parameters()).device
    state, past_torch = torch.get_rng_state(), generators()
    elsewhere = device.type != "cpu"

    def answer() -> torch.Tensor:
        if training:
            return model_loss(model, inputs, _mask_of(model, inputs))
        with torch.no_grad():
            return forward_logits(model, inputs)

    model.train(training)
    try:
        forked = torch.random.fork_rng([device] if elsewhere else [], device_type=device.type if elsewhere else "cuda")
        with forked, generators_kept():
            first = answer()
            if not elsewhere and torch.equal(state, torch.get_rng_state()) and generators() == past_torch:
                return
            for seed in range(DRAWS):
                torch.manual_seed(seed)
                seed_generators(seed)
                if not torch.allclose(first, answer(), rtol=0, atol=0, equal_nan=True):
                    mode = "training" if training else "evaluation"
                    raise NotComparableError(f"{mode} draws random numbers, which are not compared")
    finally:
        model.train(before)


def _backward_out_of_place(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Backward; where autograd refuses the model's `a += b` on a sharded module's output, again on copies of the outputs."""
    try:
        _backward(model, inputs, into)
    except RuntimeError as error:
        if _REFUSAL not in str(error):
            raise
        into.refused = error
        with copied_outputs(model):
            _backward(model, inputs, into)


def _backward(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Two backwards without zeroing the gradients: a gradient that is all-reduced in place is wrong only after the second."""
    model.zero_grad(set_to_none=True)
    for once_or_twice in (ONCE, TWICE):
        loss = model_loss(model, inputs, into=into)
        into.values["loss"] = loss.detach()
        loss.backward()
        into.gradients[once_or_twice] = {
            name: _gradient(value) for name, value in model.named_parameters() if value.requires_grad
        }
    model.zero_grad(set_to_none=True)


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.shape, dtype=parameter.dtype)
    return whole(parameter.grad.detach()).clone()


OWN_LOSS = "the model's own loss"
"""What is noted as not compared, where the single-device model raises on tokens as labels."""


def model_loss(
    model: PreTrainedModel,
    inputs: Inputs,
    more: Mapping[str, torch.Tensor] | None = None,
    *,
    into: Observed | None = None,
) -> torch.Tensor:
    """The model's own loss where it takes tokens as labels, else the cross entropy of the next token, else a mean square.

    A rank that takes another branch than the single-device model has another loss, which the comparison shows. With `into`, a
    single-device model that raises on labels is noted there, and its ranks are not asked for labels.
    """
    if inputs.name and takes(model, "labels") and (into is None or into.own_loss is not False):
        try:
            loss = model(**inputs.whole(), labels=inputs.ids, **caching(model, False), **(more or {})).get("loss")
            if loss is not None:
                return whole(loss)
        except ValueError:  # labels in a form of its own (one for each codebook)
            pass
        except Exception as error:
            if into is None or into.own_loss:
                raise
            into.unasked.setdefault(OWN_LOSS, error)
    given, ids = forward_logits(model, inputs, **(more or {})), inputs.ids
    if inputs.name and given.ndim == 3 and given.shape[:2] == ids.shape and given.shape[-1] > int(ids.max()):
        return nn.functional.cross_entropy(given[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return uneven_square(given)


def uneven_square(given: torch.Tensor) -> torch.Tensor:
    """The mean square of features, each with a weight of its own: of normalised features the plain one is constant, and has no
    gradient.
    """
    weights = torch.linspace(0.5, 1.5, given.shape[-1] if given.ndim else 1, dtype=given.dtype, device=given.device)
    return (given * weights).square().mean()


_REFUSAL = "is a view and is being modified inplace"


ONCE, TWICE = "gradient", "gradient of two backwards"
"""The names under which the gradients of one and of two backwards are kept."""


def _mask_of(model: PreTrainedModel, inputs: Inputs) -> dict[str, torch.Tensor]:
    """A padding mask that leaves the last tokens of each row, as arguments; none where the forward takes none."""
    return inputs.masking(inputs.ragged) if inputs.ragged.numel() and takes(model, "attention_mask") else {}
