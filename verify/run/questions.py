"""The questions that the single-device model and the sharded model both answer: forward, decoding, generation, backward."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._pytree import tree_flatten
from transformers import PreTrainedModel

from shardproof.planner.inputs.example import caching
from shardproof.planner.inputs.run_modes import has_unknown_cache, takes
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.weights.shards import whole
from shardproof.verify.run.compare.module_activations import ActivationRecorder, ModuleActivations
from shardproof.verify.run.inputs import Inputs
from shardproof.verify.stages.exact import Wide, copied_outputs

_REFUSAL = "is a view and is being modified inplace"
NEW_TOKENS = 4


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
    refused: RuntimeError | None = None
    """Autograd's refusal of an in-place operation; the backward was then repeated on copies of the outputs."""


Question = Callable[[PreTrainedModel, Inputs, Observed], None]


def observe(
    model: PreTrainedModel,
    inputs: Inputs,
    *,
    into: Observed,
    exact: bool = True,
    asked_of: Observed | None = None,
    enough: Callable[[Observed], bool] | None = None,
) -> Observed:
    """Ask one model all questions. An exception passes through; `into` then says how far the model came.

    Args:
        model: the single-device model or the sharded one.
        inputs: the same for both.
        into: gets the answers.
        exact: compute in float64 throughout.
        asked_of: the answers of the single-device model. Questions that it could not answer are skipped. Without it this is
            the single-device model, and a question outside `_NEEDED` that raises is noted in `into.unasked`.
        enough: ends the questions as soon as it is true of the answers.
    """
    held = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    into.trains = None if asked_of is None and exact else asked_of is not None and bool(asked_of.trains)
    if inputs.refused is not None:
        into.unasked["the forward with images"] = inputs.refused
    for stage, ask in _QUESTIONS.items():
        if enough is not None and enough(into):
            break
        if asked_of is not None and stage in asked_of.unasked:
            continue
        into.stage = stage
        boundaries = ActivationRecorder(model, keep=not into.activations)
        precision: AbstractContextManager[object] = Wide() if exact else nullcontext()
        answered = set(into.values)
        try:
            with precision, boundaries:
                if asked_of is None and ask is _train:
                    _refuse_random(model, inputs)
                ask(model, inputs, into)
            if asked_of is None:
                _drop_infinite(into, answered)
        except Exception as error:
            if asked_of is not None or stage in _NEEDED:
                raise
            into.unasked[stage] = error
        finally:
            _restore(held)
            into.inside = boundaries.inside
            into.activations = into.activations or boundaries.activations
    into.stage = "done"
    return into


def _restore(held: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Undo what a question did to buffers: the statistics of a batch norm follow what it is trained on."""
    with torch.no_grad():
        for buffer, before in held:
            if buffer.shape == before.shape:
                buffer.copy_(before)


def _drop_infinite(into: Observed, answered: set[str]) -> None:
    """Drop the answers to the last question where one is not finite, and raise `FloatingPointError`."""
    new = [name for name in into.values if name not in answered]
    wild = [name for name in new if not into.values[name].isfinite().all()]
    if wild:
        for name in new:
            del into.values[name]
        raise FloatingPointError(f"no finite numbers in {', '.join(wild)}")


def logits(model: nn.Module, **given: object) -> torch.Tensor:
    """The model's first output, whole; of a group of tensors (one for each of several heads) all their elements in one row."""
    first = model(**given)[0]
    if isinstance(first, torch.Tensor):
        return whole(first)
    leaves = [whole(leaf) for leaf in tree_flatten(first)[0] if isinstance(leaf, torch.Tensor)]
    return torch.cat([leaf.flatten() for leaf in leaves])


def _answered(model: PreTrainedModel, inputs: Inputs, **more: object) -> torch.Tensor:
    return logits(model, **inputs.whole(), **caching(model, False), **more)


def _forward(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    with torch.no_grad():
        into.values["logits"] = _answered(model, inputs)


def _masked(model: PreTrainedModel, inputs: Inputs, mask: torch.Tensor) -> torch.Tensor | None:
    """The logits under a mask, at the positions that hold a token."""
    if not mask.numel() or not takes(model, "attention_mask"):
        return None
    with torch.no_grad():
        given = _answered(model, inputs, **inputs.masking(mask))
    seen = inputs.seen(mask)
    return given if given.ndim != 3 or not seen.numel() else given[:, -seen.shape[1] :][seen]


def _padded(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    if (given := _masked(model, inputs, inputs.mask)) is not None:
        into.values["left-padded logits"] = given


def _ragged(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    if (given := _masked(model, inputs, inputs.ragged)) is not None:
        into.values["ragged logits"] = given


def _decode(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Prefill, then decode token by token with the KV cache or state; the logits of all steps, concatenated."""
    if not inputs.name:
        return
    if has_unknown_cache(model):
        raise UnknownCacheError("it takes use_cache, and no cache by a name that is known")
    cached = caching(model, True)
    with torch.no_grad():
        output = model(**inputs.first(inputs.prompt), **cached)
        steps = [whole(output[0])]
        if not _for_next_step(model, output):
            if cached and model.can_generate():
                raise NotComparableError("it returns no cache when it is asked for one")
            return
        for position in range(inputs.prompt, inputs.ids.shape[1]):
            output = model(**inputs.next(position), **_for_next_step(model, output), **cached)
            steps.append(whole(output[0]))
    into.values["decoded logits"] = torch.cat(steps, dim=1)


def _for_next_step(model: PreTrainedModel, output: Mapping[str, object]) -> dict[str, object]:
    """What an output gives the next step: values that the forward takes by the same name, such as a KV cache or a state."""
    return {name: value for name, value in output.items() if value is not None and takes(model, name)}


def _generate(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Greedy generation from a left-padded prompt, by the model's own `generate`."""
    if not model.can_generate() or not inputs.name:
        return
    prompt = dict(inputs.more) if inputs.encoded else inputs.first(inputs.prompt)
    if inputs.mask.numel():
        prompt["attention_mask"] = inputs.mask[:, : prompt["input_ids"].shape[1]]
    with quiet():
        output = model.generate(  # type: ignore[operator]  # a mixin that torch's Module hides
            **prompt,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            pad_token_id=0,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    steps = torch.stack([whole(step) for step in output.logits], dim=1)
    first, second = steps.topk(2).values.unbind(-1)
    lead = (first - second) / steps.abs().amax(-1).clamp_min(torch.finfo(steps.dtype).tiny)
    into.tokens["generated tokens"] = Tokens(output.sequences[:, -NEW_TOKENS:], lead)


def _backward_in_mode(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
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
                _backward_in_mode(model, inputs, into)
            except Exception:
                raise error from None
            return
    before = model.training
    model.train(into.trains)
    try:
        _backward_out_of_place(model, inputs, into)
    finally:
        model.train(before)


def _train(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Loss and gradients in training mode, under a padding mask where the forward takes one: code may branch on either.

    A twin has no dropout. A model whose loss is random all the same was refused before (`_refuse_random`).
    """
    before = model.training
    model.train(True)
    try:
        with copied_outputs(model) if into.refused else nullcontext():
            loss = model_loss(model, inputs, _mask_of(model, inputs))
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


def _refuse_random(model: PreTrainedModel, inputs: Inputs) -> None:
    """`NotComparableError` where the loss in training depends on random numbers. Asked of a single device: ranks would have to
    agree on how often they ask.
    """
    before, state, device = model.training, torch.get_rng_state(), next(model.parameters()).device
    elsewhere = device.type != "cpu"
    model.train(True)
    try:
        with torch.random.fork_rng([device] if elsewhere else [], device_type=device.type if elsewhere else "cuda"):
            loss = model_loss(model, inputs, _mask_of(model, inputs))
            if not elsewhere and torch.equal(state, torch.get_rng_state()):
                return
            for seed in range(DRAWS):
                torch.manual_seed(seed)
                if not torch.equal(loss, model_loss(model, inputs, _mask_of(model, inputs))):
                    raise NotComparableError("training draws random numbers, which are not compared")
    finally:
        model.train(before)


ONCE, TWICE = "gradient", "gradient of two backwards"
"""The names under which the gradients of one and of two backwards are kept."""


class NotComparableError(RuntimeError):
    """A question that one device answers differently from one time to the next, or not at all."""


class UnknownCacheError(RuntimeError):
    """A model that keeps something between forwards, and hands it on by a name that is not known: the question is not asked."""


def _mask_of(model: PreTrainedModel, inputs: Inputs) -> dict[str, torch.Tensor]:
    """A padding mask that leaves the last tokens of each row, as arguments; none where the forward takes none."""
    return inputs.masking(inputs.ragged) if inputs.ragged.numel() and takes(model, "attention_mask") else {}


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
        loss = model_loss(model, inputs)
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


def model_loss(model: PreTrainedModel, inputs: Inputs, more: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
    """The model's own loss where it takes tokens as labels, else the cross entropy of the next token, else the mean square.

    A rank that takes another branch than the single-device model has another loss, which the comparison shows.
    """
    if inputs.name and takes(model, "labels"):
        with suppress(ValueError):  # labels in a form of its own (one for each codebook)
            loss = model(**inputs.whole(), labels=inputs.ids, **caching(model, False), **(more or {})).get("loss")
            if loss is not None:
                return whole(loss)
    given, ids = _answered(model, inputs, **(more or {})), inputs.ids
    if inputs.name and given.ndim == 3 and given.shape[:2] == ids.shape and given.shape[-1] > int(ids.max()):
        return nn.functional.cross_entropy(given[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return given.square().mean()


def _eager(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """The forward again with eager attention, which raises on shapes that sdpa broadcasts; only where the model supports both."""
    if model.config._attn_implementation != "sdpa":
        return
    try:
        with quiet():
            model.set_attn_implementation("eager")
        if model.config._attn_implementation != "eager":
            return
        with torch.no_grad():
            into.values["eager logits"] = _answered(model, inputs)
        if (given := _masked(model, inputs, inputs.mask)) is not None:
            into.values["left-padded eager logits"] = given
    finally:
        with quiet():
            model.set_attn_implementation("sdpa")


_QUESTIONS: Mapping[str, Question] = {
    "forward": _forward,
    "left-padded forward": _padded,
    "ragged forward": _ragged,
    "cached decode": _decode,
    "generation": _generate,
    "backward": _backward_in_mode,
    "training": _train,
    "eager attention": _eager,
}
_NEEDED = ("forward", "backward")
"""A model that raises on one of these cannot be compared at all."""
