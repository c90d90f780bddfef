"""Record the calls of modules in the single-device model: shapes of inputs and outputs, and writes into the KV cache.

An absent module of a stage answers with zeros in the recorded shapes, and repeats the writes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import nn
from transformers import Cache, EncoderDecoderCache
from transformers.utils.generic import ModelOutput

from shardproof.planner.ir.dataflow import Entrance
from shardproof.planner.ir.graph import Graph
from shardproof.planner.tracing.layers.layer_kinds import LayerKind, layer_kinds
from shardproof.planner.tracing.layers.layer_number import LayerNumber
from shardproof.verify.stages.stage_boundary import tensor_at

STATES = ("update_conv_state", "update_recurrent_state")
"""Methods of Transformers' cache that replace the state of a layer; `update` adds keys and values."""
_WRITES = ("update", *STATES)


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
        return tensor_at(module, call.args, call.kwargs, entrance)


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[Record]:
    """Record the calls of these modules."""
    with recorded_forwards(model, names) as records:
        records.append(Record({name: [] for name in names}))
        yield records[0]


@contextmanager
def recorded_forwards(model: nn.Module, names: Sequence[str], *, apart: bool = False) -> Iterator[list[Record]]:
    """Record the calls of these modules; with `apart`, of each forward of the model in a record of its own."""
    paths: dict[int, list[str]] = {}
    for name in names:
        paths.setdefault(id(model.get_submodule(name)), []).append(name)
    watcher = _Watcher(paths)
    with ExitStack() as hooks:
        if apart:
            hooks.callback(model.register_forward_pre_hook(watcher.begin).remove)
        for module in map(model.get_submodule, (known[0] for known in paths.values())):
            hooks.callback(module.register_forward_pre_hook(watcher.before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(watcher.after, with_kwargs=True).remove)
        yield watcher.records


@dataclass
class _Watcher:
    """Notes the calls of modules, under every name of each. One object watches all, so that a layer that is watched is still
    like its siblings, and may stand for them in a trace.
    """

    names: Mapping[int, list[str]]
    records: list[Record] = field(default_factory=list)
    open: list[tuple[tuple[object, ...], dict[str, object], list[CacheWrite]]] = field(default_factory=list)

    def begin(self, *_: object) -> None:
        """A forward of the model begins."""
        self.records.append(Record({name: [] for names in self.names.values() for name in names}))

    def before(self, _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """A module is called."""
        writes: list[CacheWrite] = []
        given = {name: _given_form(value) for name, value in kwargs.items()}
        self.open.append((tuple(map(_given_form, args)), given, writes))
        for part, cache in enumerate(caches_in(args, kwargs)):
            for method in _WRITES:
                if hasattr(cache, method):
                    vars(cache)[method] = _noted(getattr(cache, method), (part, method), writes)

    def after(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        """A module has given its output."""
        for cache in caches_in(args, kwargs):
            for method in _WRITES:
                vars(cache).pop(method, None)
        given, named, writes = self.open.pop()
        call = RecordedCall(mapped(output, _form), tuple(writes), given, named)
        for name in self.names[id(module)]:
            self.records[-1].calls[name].append(call)


def _noted(write: Callable[..., object], where: tuple[int, str], writes: list[CacheWrite]) -> Callable[..., object]:
    def noted(*args: object, **kwargs: object) -> object:
        forms = {name: mapped(value, _form) for name, value in kwargs.items()}
        writes.append(CacheWrite(*where, tuple(mapped(value, _form) for value in args), forms))
        return write(*args, **kwargs)

    return noted


def with_writes_of_repeated_layers(record: Record, model: nn.Module, graph: Graph) -> Record | None:
    """A traced record in which layers that were not run, for they repeat another, write what that one wrote, at their own place.

    None where their own place cannot be told.
    """
    kinds, calls = layer_kinds(model), dict(record.calls)
    for name, own in record.calls.items():
        first = graph.module_of[name].repeats if name in graph.module_of else None
        if first is None or first not in record.calls:
            continue
        places = _places(model, kinds, first, name)
        made = list[RecordedCall]()
        for mine, shown in zip(own, record.calls[first], strict=False):
            placed = [_placed(write, places) for write in (() if mine.writes else shown.writes)]
            known = [write for write in placed if write is not None]
            if len(known) < len(placed):
                return None
            made.append(replace(mine, writes=(*mine.writes, *known)))
        calls[name] = [*made, *own[len(made) :]]
    return Record(calls)


def _places(model: nn.Module, kinds: Mapping[int, LayerKind], first: str, name: str) -> dict[int, set[int]]:
    """What the numbers that count the layers are in one layer, by what they are in another of its kind."""
    shown, mine = model.get_submodule(first), model.get_submodule(name)
    places = {kinds[id(shown)].position: {kinds[id(mine)].position}} if id(shown) in kinds else {}
    for path, attribute in kinds[id(shown)].counters if id(shown) in kinds else ():
        old, new = (vars(layer.get_submodule(path)).get(attribute) for layer in (shown, mine))
        if isinstance(old, int) and isinstance(new, int):
            places.setdefault(old, set()).add(new)
    return places


def _placed(write: CacheWrite, places: Mapping[int, set[int]]) -> CacheWrite | None:
    """A write at another layer's place; None where that is not one place."""
    marked = [value for value in (*write.args, *write.kwargs.values()) if type(value) is LayerNumber]
    if any(len(places.get(one.value, ())) != 1 for one in marked):
        return None

    def mine(value: object) -> object:
        return next(iter(places[value.value])) if type(value) is LayerNumber else value

    return replace(write, args=tuple(map(mine, write.args)), kwargs={key: mine(v) for key, v in write.kwargs.items()})


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
