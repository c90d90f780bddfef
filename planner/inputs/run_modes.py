"""The ways in which clients run a model: evaluation, training with a loss, decoding through a cache, and eager attention.

Code may take another path in each: by `training`, by the gradient mode, by labels, by a mask, by the number of tokens, by what
the cache holds, by the attention that its config names. So each is a program of its own, and each is proved.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from shardproof.planner.inputs.example import caching, example_inputs
from shardproof.planner.ir.findings import Source
from shardproof.planner.loading.implementations import asked_of
from shardproof.planner.transformers_facts.caches import CACHE_NAMES


class RunMode(StrEnum):
    EVALUATION = "evaluation"
    TRAINING = "training"
    """With labels and a padding mask, where the forward takes them; gradients are on."""
    DECODING = "decoding"
    """A prefill that fills the cache, then one token; with a padding mask, where the forward takes one; gradients are off."""
    EAGER = "eager attention"
    """Evaluation with the attention function of the modeling file, where the config names another; with a padding mask, where the
    forward takes one.
    """


Call: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Script:
    """What is run in one mode: the forwards one after the other, each with its arguments; each hands its cache to the next.

    `lacks` names arguments of the mode that the forward takes and fails with.
    """

    mode: RunMode
    calls: tuple[Call, ...]
    lacks: tuple[str, ...] = ()
    other_side: frozenset[Source] = frozenset()
    """Lines that branch on data, and take the other side than a trace takes by itself."""
    after: RunMode | None = None
    """The mode of a forward that was made before, with the arguments of the first one; what it left in the model is there."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the caller gives, by name; those of later forwards are numbered."""
        named = [(f"{name}#{at}" if at else name, v) for at, call in enumerate(self.calls) for name, v in call.items()]
        return {name: value for name, value in named if isinstance(value, Tensor)}

    def run(self, model: nn.Module) -> object:
        """Run the forwards and return what the last one gives, beside what the first gave."""
        outputs: list[object] = []
        cache: dict[str, object] = {}
        if self.after is not None:
            model.train(self.after is RunMode.TRAINING)(**self.calls[0])
            model.train(self.mode is RunMode.TRAINING)
        for call in self.calls:
            outputs.append(model(**call, **cache))
            cache = cache_in(model, outputs[-1])
            if len(self.calls) > len(outputs) and not cache:
                raise NoCacheError(f"{type(model).__name__} returns no cache when it is asked for one")
        return outputs[0] if len(outputs) == 1 else {f"forward {at}": output for at, output in enumerate(outputs)}


class NoCacheError(RuntimeError):
    """A model that keeps nothing between forwards: there is no decoding step to ask about."""


def cache_in(model: nn.Module, output: object) -> dict[str, object]:
    """The cache that an output holds, under the name by which the model's forward takes it; empty where there is none."""
    for name in CACHE_NAMES:
        held = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if held is not None and takes(model, name):
            return {name: held}
    return {}


def has_cache(model: nn.Module) -> bool:
    """Whether the model's forward takes a cache, and can be asked to return one: decoding then is a question to ask."""
    return any(takes(model, name) for name in CACHE_NAMES) and bool(caching(model, True))


def has_unknown_cache(model: nn.Module) -> bool:
    """Whether the model can be asked for a cache, and its forward takes none by a known name: nothing is known of decoding.

    A part's own cache is out of reach where the whole neither names `use_cache` nor generates.
    """
    if not caching(model, True) or has_cache(model):
        return False
    generates = getattr(model, "can_generate", None)
    own = "use_cache" in inspect.signature(type(model).forward).parameters
    return own or generates is None or bool(generates())


def has_eager(model: nn.Module) -> bool:
    """Whether a model runs torch's fused attention, and an attention function of its own when its config asks for `eager`; not
    where one of the two was asked for, which is then all that is run.
    """
    if asked_of(model).attention is not None:
        return False
    named = getattr(getattr(model, "config", None), "_attn_implementation", None)
    may_change = getattr(model, "_can_set_attn_implementation", None)
    return named == "sdpa" and (may_change is None or may_change())


def takes(model: nn.Module, name: str) -> bool:
    """Whether a model's forward names this keyword, or hands what it does not name to a base model that names it."""
    names = inspect.signature(type(model).forward).parameters
    base = getattr(model, "base_model", model)
    if name in names or base is model or not isinstance(base, nn.Module):
        return name in names
    return any(one.kind is one.VAR_KEYWORD for one in names.values()) and takes(base, name)


def scripts(model: nn.Module, mode: RunMode, inputs: Mapping[str, Any] | None = None) -> Iterator[Script]:
    """What to run in a mode, fullest first: a forward may refuse a mask, or labels.

    Args:
        model: on the meta device; its forward's own signature is read.
        mode: the mode.
        inputs: what the forward is given in evaluation; by default what the trace found it to take.
    """
    given: dict[str, Any] = dict(inputs if inputs is not None else example_inputs(model))
    if mode is RunMode.EVALUATION:
        yield Script(mode, ({**caching(model, False), **given},))
        return
    mask = _mask(model, given)
    if mode is RunMode.EAGER:
        for more in _fullest_first(mask):
            yield Script(mode, ({**caching(model, False), **given, **more},))
        return
    if mode is RunMode.TRAINING:
        labels = _labels(model, given)
        off = caching(model, False)
        for more in _fullest_first(mask, labels):
            lacks = tuple(name for name in (mask | labels) if name not in more)
            yield Script(mode, ({**off, **given, **more},), lacks)
        return
    for more in _fullest_first(mask):
        following = _one_token(model, given, more)
        if following is not None:
            lacks = tuple(name for name in mask if name not in more)
            on = caching(model, True)
            yield Script(mode, ({**on, **given, **more}, {**on, **following}), lacks)


def _fullest_first(*parts: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """All parts together, then without one of them, then none; each combination once."""
    every: dict[str, Tensor] = {}
    for part in parts:
        every |= part
    found = [every, *({k: v for k, v in every.items() if k not in part} for part in parts), {}]
    return [one for at, one in enumerate(found) if all(set(one) != set(other) for other in found[:at])]


def _tokens(given: Mapping[str, Any]) -> Tensor | None:
    """The ids that the model continues."""
    return next((given[name] for name in ("decoder_input_ids", "input_ids") if name in given), None)


def _mask(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Tensor]:
    ids = given.get("input_ids")
    wanted = takes(model, "attention_mask") and "attention_mask" not in given and ids is not None
    return {"attention_mask": _like(ids, ids.shape)} if wanted and ids is not None else {}


def _labels(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Tensor]:
    ids = _tokens(given)
    return {"labels": _like(ids, ids.shape)} if ids is not None and takes(model, "labels") else {}


def _one_token(model: nn.Module, given: Mapping[str, Any], more: Mapping[str, Tensor]) -> Call | None:
    """The step that decodes one token after `given`: an encoder is asked again, images are in the cache."""
    ids = _tokens(given)
    if ids is None or not any(takes(model, name) for name in CACHE_NAMES):
        return None
    if "decoder_input_ids" in given:
        return {**given, **more, "decoder_input_ids": _like(ids, (ids.shape[0], 1))}
    longer = {name: _like(mask, (mask.shape[0], mask.shape[1] + 1)) for name, mask in more.items()}
    return {"input_ids": _like(ids, (ids.shape[0], 1)), **longer}


def _like(tensor: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    return torch.empty(shape, dtype=torch.long, device=tensor.device)
