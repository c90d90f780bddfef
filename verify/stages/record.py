"""Record the calls of modules in the single-device model: shapes of inputs and outputs, and writes into the KV cache.

An absent module of a stage answers with zeros in the recorded shapes, and repeats the writes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn
from transformers import Cache, EncoderDecoderCache
from transformers.utils.generic import ModelOutput

from shardproof.planner.ir.dataflow import Entrance
from shardproof.verify.stages.stage_boundary import taken

_WRITES = ("update", "update_conv_state", "update_recurrent_state")


@dataclass(frozen=True, slots=True)
class CacheWrite:
    """One write into a KV cache, its tensors on the meta device; `part` is the number of the cache where there are several."""

    part: int
    method: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call of a module: its arguments and output with tensors on the meta device, and its cache writes."""

    output: object
    writes: tuple[CacheWrite, ...] = ()
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """The calls of each named module during one forward of the single-device model, in order."""

    calls: dict[str, list[RecordedCall]] = field(default_factory=dict)

    def entering(self, layer: str, module: nn.Module, entrance: Entrance) -> torch.Tensor:
        """The tensor on the meta device that entered a layer in its first call, with its `requires_grad`."""
        call = self.calls[layer][0]
        return taken(module, call.args, call.kwargs, entrance)


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[Record]:
    """Record the calls of these modules."""
    record = Record()
    with ExitStack() as hooks:
        for name in names:
            for handle in _watch(model.get_submodule(name), record.calls.setdefault(name, [])):
                hooks.callback(handle.remove)
        yield record


def _watch(module: nn.Module, calls: list[RecordedCall]) -> tuple[torch.utils.hooks.RemovableHandle, ...]:
    writes: list[CacheWrite] = []
    given: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def before(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        given.append((tuple(map(_given_form, args)), {name: _given_form(value) for name, value in kwargs.items()}))
        for part, cache in enumerate(caches_in(args, kwargs)):
            for method in _WRITES:
                if hasattr(cache, method):
                    vars(cache)[method] = _noted(getattr(cache, method), (part, method), writes)

    def after(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        for cache in caches_in(args, kwargs):
            for method in _WRITES:
                vars(cache).pop(method, None)
        calls.append(RecordedCall(mapped(output, _form), tuple(writes), *given.pop()))
        writes.clear()

    return (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    )


def _noted(write: Callable[..., object], where: tuple[int, str], writes: list[CacheWrite]) -> Callable[..., object]:
    def noted(*args: object, **kwargs: object) -> object:
        forms = {name: mapped(value, _form) for name, value in kwargs.items()}
        writes.append(CacheWrite(*where, tuple(mapped(value, _form) for value in args), forms))
        return write(*args, **kwargs)

    return noted


def caches_in(args: Sequence[object], kwargs: Mapping[str, object]) -> list[Cache]:
    """The KV cache among the arguments of a call; for a decoder with an encoder, the self- and the cross-attention cache."""
    cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
    if isinstance(cache, EncoderDecoderCache):
        return [cache.self_attention_cache, cache.cross_attention_cache]
    return [] if cache is None else [cache]


def _form(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def _given_form(value: object) -> object:
    """An argument with its tensors on the meta device; None for a KV cache."""
    if isinstance(value, Cache):
        return None
    return mapped(value, lambda tensor: _form(tensor).requires_grad_(tensor.requires_grad))


def mapped(value: object, change: Callable[[torch.Tensor], torch.Tensor]) -> object:
    """The same structure with every tensor changed."""
    match value:
        case torch.Tensor():
            return change(value)
        case tuple() | list():
            items, kind = [mapped(item, change) for item in value], cast("Callable[..., object]", type(value))
            return kind(*items) if hasattr(value, "_fields") else kind(items)
        case ModelOutput():
            return type(value)(**{key: mapped(item, change) for key, item in value.items()})
        case dict():
            return {key: mapped(item, change) for key, item in value.items()}
        case _:
            return value
