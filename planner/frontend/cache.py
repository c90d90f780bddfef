"""What a model keeps between decoding steps, in bytes: read off the cache that its own forward fills on the meta device."""

from collections.abc import Mapping
from inspect import signature

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig

from planner.frontend.local import trace_local
from planner.frontend.trace import TraceError
from planner.ir.graph import Graph
from planner.sharding.assign import Assigned

CACHE_NAMES = ("past_key_values", "cache_params")
"""The arguments by which Transformers' models take a cache: attention and hybrids the first, state-space models the second."""


def cache_elements(model: nn.Module, assigned: Assigned, degree: int, *, context: int) -> tuple[int, ...] | None:
    """Elements that one sequence of `context` tokens keeps in each layer, on one of `degree` ranks.

    Keys and values, compressed latents or states, whatever the layers store; a sliding window keeps its width. None where the
    forward takes no cache of Transformers' kind, or cannot fill one without data.
    """
    try:
        config = model.config
        assert isinstance(config, PreTrainedConfig)
        cache = DynamicCache(config=config)
        name = next(name for name in CACHE_NAMES if name in signature(model.forward).parameters)
        inputs = {
            "input_ids": torch.empty((1, context), dtype=torch.long, device="meta"),
            name: cache,
            "use_cache": True,
        }
        graph = trace_local(model, assigned, degree, inputs)
    except (TraceError, TypeError, AttributeError, ValueError, StopIteration):
        return None
    return _filled(graph, [_elements(layer) for layer in cache.layers])


def _elements(layer: object) -> int:
    kept = [value for value in _tensors(vars(layer)) if value.dim() > 1]
    return sum(value.numel() for value in kept)


def _tensors(fields: Mapping[str, object]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in fields.values():
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            found += _tensors(value)
    return found


def _filled(graph: Graph, elements: list[int]) -> tuple[int, ...] | None:
    """Layers that were not run because they repeat another keep what that one keeps."""
    for module in graph.modules:
        number = module.path.rpartition(".")[2]
        if module.repeats is not None and number.isdigit() and int(number) < len(elements):
            elements[int(number)] = elements[int(module.repeats.rpartition(".")[2])]
    return tuple(elements) if any(elements) else None
