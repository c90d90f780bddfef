"""What a model keeps between decoding steps: read off the cache that its own forward fills on the meta device."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig

from shardproof.planner.inputs.run_modes import RunMode, Script
from shardproof.planner.ir.graph import Graph
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.tracing.rank_program import trace_local
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.session import private_copy
from shardproof.planner.transformers_facts.caches import CACHE_OBJECTS

SERVED = torch.bfloat16
"""The dtype that the parameters have meanwhile: what is kept in another dtype keeps that whatever a model is loaded in."""

Tensors: TypeAlias = "tuple[tuple[int, int | None], ...]"
"""What one layer keeps, tensor by tensor: elements, and bytes of one where that does not follow the model's dtype."""


def cache_tensors(model: nn.Module, assigned: Assigned, degree: int, *, context: int) -> tuple[Tensors, ...] | None:
    """What one sequence of `context` tokens keeps in each layer, on one of `degree` ranks.

    Keys and values, compressed latents or states, whatever the layers store, in the cache or in the model's own modules; a
    sliding window keeps its width. None where the forward takes no cache of Transformers' kind, or cannot fill one without
    data.
    """
    for dtype in (SERVED, None):  # some forwards mix dtypes only as long as all are the default one
        try:
            with private_copy(model) as own:
                return _traced(own, assigned, degree, context, dtype)
        except (TraceError, TypeError, AttributeError, ValueError, StopIteration):
            continue
    return None


def places_matter(cache: object, tokens: int) -> bool:
    """Whether a layer must find its own place in a cache that was filled with so many tokens.

    It need not where every entry that was filled is alike and none grows with the tokens: a state has no length that is asked
    of one layer for all, and any entry can hold it.
    """
    entries = getattr(cache, "layers", None)
    if not isinstance(entries, list):
        return cache is not None
    kept = [tuple(tensor.shape for tensor in _tensors(vars(entry))) for entry in entries]
    filled = {shapes for shapes in kept if shapes}
    return len(filled) != 1 or any(tokens in shape for shapes in filled for shape in shapes)


def _traced(
    model: nn.Module, assigned: Assigned, degree: int, context: int, dtype: torch.dtype | None
) -> tuple[Tensors, ...] | None:
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    cache = DynamicCache(config=config)
    name = next(name for name in CACHE_OBJECTS if name in signature(model.forward).parameters)
    ids = torch.empty((1, context), dtype=torch.long, device="meta")
    left: dict[str, list[Tensor]] = {}
    with _served(model, dtype):
        asked = {"input_ids": ids, name: cache, "use_cache": True}
        script = Script(RunMode.DECODING, (asked,))
        graph = trace_local(model, assigned, degree, script=script, left=left)
    layers = [_distinct(_tensors(vars(layer)), dtype) for layer in cache.layers]
    for path, tensors in left.items():
        number = _layer_of(path, len(layers))
        if number is not None:
            layers[number] += _distinct(tensors, dtype)
    return _filled(graph, layers)


@contextmanager
def _served(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """With floating-point parameters and buffers in a dtype, as a model that is loaded in it; tied ones stay tied."""
    if dtype is None:
        yield
        return
    tables = [table for module in model.modules() for table in (module._parameters, module._buffers)]
    held = [(table, dict(table)) for table in tables]
    made: dict[int, Tensor] = {}
    for table, values in held:
        for name, value in values.items():
            if value is not None and value.is_floating_point():
                table[name] = made.setdefault(id(value), _like(value, dtype))  # type: ignore[assignment]  # of its kind
    try:
        yield
    finally:
        for table, values in held:
            table.update(values)  # type: ignore[arg-type]  # what was in it


def _like(value: Tensor, dtype: torch.dtype) -> Tensor:
    served = torch.empty_like(value, dtype=dtype)
    return nn.Parameter(served, requires_grad=False) if isinstance(value, nn.Parameter) else served


def _distinct(tensors: list[Tensor], dtype: torch.dtype | None) -> Tensors:
    """Each memory once: some layers keep one latent under the names of keys and of values."""
    many = {(t.untyped_storage()._cdata, t.storage_offset(), t.shape): t for t in tensors if t.dim() > 1}.values()
    return tuple((one.numel(), None if dtype in (None, one.dtype) else one.element_size()) for one in many)


def _tensors(fields: Mapping[str, object]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in fields.values():
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            found += _tensors(value)
    return found


def _layer_of(path: str, depth: int) -> int | None:
    """The layer that a module belongs to, by the first number of its path."""
    number = next((int(part) for part in path.split(".") if part.isdigit()), None)
    return number if number is not None and number < depth else None


def _filled(graph: Graph, layers: list[Tensors]) -> tuple[Tensors, ...] | None:
    """Layers that were not run because they repeat another keep what that one keeps. A layer with two attentions has two
    entries of the cache, one behind the other.
    """
    lists = Counter(path.rpartition(".")[0] for path in graph.module_of if path.rpartition(".")[2].isdigit())
    stacks = {parent for parent, count in lists.items() if count == len(layers)}
    outer = min((parent for parent, count in lists.items() if len(layers) % count == 0), key=len, default="")
    each = 1 if stacks or not outer else len(layers) // lists[outer]
    entries = [layers[at : at + each] for at in range(0, len(layers), each)]
    for parent, number, first in _repeats(graph):
        if each > 1 and lists.get(parent) == each and parent.startswith(f"{outer}."):
            own = entries[int(parent.removeprefix(f"{outer}.").partition(".")[0])]
            own[number] = own[number] or own[first]  # the second attention repeats the first
        inside = parent in (stacks or ({outer} if each > 1 else lists))
        if inside and number < len(entries):
            entries[number] = entries[first]
    found = tuple(tuple(one for entry in entry_of for one in entry) for entry_of in entries)
    return found if any(found) else None


def _repeats(graph: Graph) -> Iterator[tuple[str, int, int]]:
    """Every member of a list that repeats another member: the list, its number, and the number of the other."""
    for module in graph.modules:
        parent, _, number = module.path.rpartition(".")
        first = (module.repeats or "").rpartition(".")[2]
        if number.isdigit() and first.isdigit():
            yield parent, int(number), int(first)
