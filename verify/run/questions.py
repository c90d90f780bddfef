"""The questions that the single-device model and the sharded model both answer: forward, decoding, generation, backward."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from shardproof.planner.inputs.example import caching
from shardproof.planner.inputs.run_modes import has_unknown_cache, takes
from shardproof.planner.loading.implementations import asked_of
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.weights.shards import whole
from shardproof.verify.run.compare.module_activations import ActivationRecorder
from shardproof.verify.run.gradient_questions import OWN_LOSS, ask_gradients, ask_training, refuse_random
from shardproof.verify.run.held_state import HeldState
from shardproof.verify.run.inputs import Inputs
from shardproof.verify.run.observed import (
    NotComparableError,
    Observed,
    Question,
    Tokens,
    UnknownCacheError,
    forward_logits,
)
from shardproof.verify.stages.exact import Wide

NEW_TOKENS = 4


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
    began = HeldState(model)
    into.trains = None if asked_of is None and exact else asked_of is not None and bool(asked_of.trains)
    into.own_loss = None if asked_of is None else OWN_LOSS not in asked_of.unasked
    if inputs.refused is not None:
        into.unasked["the forward with images"] = inputs.refused
    for stage, ask in _QUESTIONS.items():
        if enough is not None and enough(into):
            break
        if asked_of is not None and stage in asked_of.unasked:
            continue
        into.stage = stage
        boundaries = ActivationRecorder(model, keep=not into.activations)
        answered = set(into.values)
        try:
            if asked_of is None and ask in (ask_training, _forward):
                with _precision(exact):
                    refuse_random(model, inputs, training=ask is ask_training)
                began.restore()
            with _precision(exact), boundaries:
                ask(model, inputs, into)
            if asked_of is None:
                _drop_infinite(into, answered)
        except Exception as error:
            if asked_of is not None or stage in _NEEDED:
                raise
            into.unasked[stage] = error
        finally:
            began.restore()
            into.inside = boundaries.inside
            into.activations = into.activations or boundaries.activations
    into.stage = "done"
    return into


def _precision(exact: bool) -> AbstractContextManager[object]:
    return Wide() if exact else nullcontext()


def _drop_infinite(into: Observed, answered: set[str]) -> None:
    """Drop the answers to the last question where one is not finite, and raise `FloatingPointError`."""
    new = [name for name in into.values if name not in answered]
    wild = [name for name in new if not into.values[name].isfinite().all()]
    if wild:
        for name in new:
            del into.values[name]
        raise FloatingPointError(f"no finite numbers in {', '.join(wild)}")


def _forward(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    with torch.no_grad():
        into.values["logits"] = forward_logits(model, inputs)


def _masked(model: PreTrainedModel, inputs: Inputs, mask: torch.Tensor) -> torch.Tensor | None:
    """The logits under a mask, at the positions that hold a token."""
    if not mask.numel() or not takes(model, "attention_mask"):
        return None
    with torch.no_grad():
        given = forward_logits(model, inputs, **inputs.masking(mask))
    seen = inputs.compared_positions(mask)
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
            num_beams=1,
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


def _eager(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """The forward again with eager attention, which raises on shapes that sdpa broadcasts.

    Only where the model supports both, and neither was asked for.
    """
    if asked_of(model).attention is not None or model.config._attn_implementation != "sdpa":
        return
    try:
        with quiet():
            model.set_attn_implementation("eager")
        if model.config._attn_implementation != "eager":
            return
        with torch.no_grad():
            into.values["eager logits"] = forward_logits(model, inputs)
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
    "backward": ask_gradients,
    "training": ask_training,
    "eager attention": _eager,
}
_NEEDED = ("forward", "backward")
"""A model that raises on one of these cannot be compared at all."""
