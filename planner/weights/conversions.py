"""Does the client's conversion of a checkpoint commute with sharding?

A rank first reads its shard of every checkpoint tensor, according to the parameter's placement. It then converts the shards:
merges several tensors, splits one, or reorders elements. If the conversion does not commute with sharding, the rank holds other
elements than the plan says. This is tried with the client's own operations on small tensors whose elements are all different.
Source: transformers 5.23.0, core_model_loading.py, `convert_and_load_state_dict_in_model`, and distributed/sharding_utils.py,
`DtensorShardOperation`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from shardproof.planner.ir.placement import Placement, R, Shard
from shardproof.planner.ir.plan import generic
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.weights.shards import part_of

_Tensors: TypeAlias = dict[str, list[Tensor]]


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A parameter of which a rank holds other elements than its placement says. `held` is the placement that it has
    instead, if any.

    `known` is false if the conversion could not be tried, so that the rank's elements are unknown.
    """

    name: str
    placement: Placement
    entry: str
    sources: tuple[str, ...]
    held: Placement | None = None
    known: bool = True


@dataclass(frozen=True, slots=True)
class _Trial:
    """One conversion, and the placement wanted for each of its results."""

    converter: WeightConverter
    names: tuple[str, ...]
    ndims: tuple[int, ...]
    placements: tuple[Placement, ...]


def misplaced(model: nn.Module, assigned: Assigned, degree: int) -> tuple[Misplaced, ...]:
    """The sharded parameters of which a rank holds wrong elements after the conversion at this degree; one for each pattern."""
    return tuple(_converted_placements(model, assigned, degree)) if isinstance(model, PreTrainedModel) else ()


def _converted_placements(model: PreTrainedModel, assigned: Assigned, degree: int) -> Iterator[Misplaced]:
    sharded = {name: at for name, at in assigned.parameters.items() if isinstance(at[0], Shard)}
    converters = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightConverter)]
    seen: set[str] = set()
    for name, (placement, entry) in sharded.items():
        pattern = generic(name)
        if pattern in seen or not converters:
            continue
        seen.add(pattern)
        for trial in _trials(model, converters, name, assigned):
            at = trial.names.index(name)
            held = _placements_after(model, trial, degree)
            if held is None or held[at] != placement:
                yield Misplaced(
                    name,
                    placement,
                    entry,
                    tuple(trial.converter.source_patterns),
                    held[at] if held else None,
                    held is not None,
                )


def _trials(
    model: PreTrainedModel, converters: list[WeightConverter], name: str, assigned: Assigned
) -> Iterator[_Trial]:
    """The conversions that produce a parameter, each with all of its results."""
    known = {one for one, _ in chain(model.named_parameters(remove_duplicate=False), model.named_buffers())}
    for converter in converters:
        mine = next((target for target in converter.target_patterns if re.search(target, name)), None)
        if mine is None:
            continue
        names = tuple(name.replace(mine, target) if target != mine else name for target in converter.target_patterns)
        if not known.issuperset(names):  # it makes parameters of another module, whose name ends alike
            continue
        placements = tuple(assigned.parameters.get(each, (R, ""))[0] for each in names)
        ndims = tuple(model.get_parameter_or_buffer(each).ndim for each in names)
        yield _Trial(converter, names, ndims, placements)


MOST_TRIED = 4
"""The most ranks at which a conversion is tried. Operations that split and merge tensors behave alike at higher degrees,
and the size of the tensors grows with the degree to the power of their dims. Two ranks alone are too few: a rank's part may
be one whole half.
"""


def _placements_after(model: PreTrainedModel, trial: _Trial, degree: int) -> list[Placement | None] | None:
    """The placement of each result after the conversion; None if the conversion cannot be tried."""
    degree = degree if degree <= MOST_TRIED else MOST_TRIED - degree % 2
    targets, size = trial.converter.target_patterns, _size(trial, degree)
    most = size ** max(trial.ndims)
    whole = {
        target: torch.arange(at * most, at * most + size**ndim).reshape([size] * ndim)
        for at, (target, ndim) in enumerate(zip(targets, trial.ndims, strict=True))
    }
    try:
        sources = _undone(model, trial, whole)
        again = _converted(model, trial, sources)
        if any(not torch.equal(again[target][0], whole[target]) for target in targets):
            return None
        ranks = [
            _converted(model, trial, _read(trial, sources, rank=rank, degree=degree, size=size))
            for rank in range(degree)
        ]
    except Exception:  # an operation that needs more than tensors, such as the sizes of the model
        return None
    return [
        _placement([rank[target][0] for rank in ranks], whole[target], placement)
        for target, placement in zip(targets, trial.placements, strict=True)
    ]


def _size(trial: _Trial, degree: int) -> int:
    """The size of every dim of the small tensors: divisible by ranks, blocks, sources and results, and by two."""
    blocks = prod(placement.blocks for placement in set(trial.placements) if isinstance(placement, Shard))
    return 2 * degree * blocks * max(len(trial.converter.source_patterns), len(trial.converter.target_patterns))


def _undone(model: PreTrainedModel, trial: _Trial, whole: Mapping[str, Tensor]) -> _Tensors:
    """The tensors of a checkpoint: the reverse conversion, as the client runs it when it saves."""
    converter = trial.converter
    held: dict[str, Any] = {name: [tensor] for name, tensor in whole.items()}
    for operation in reversed(converter.operations):
        held = _applied(model, trial, operation.reverse_op, held, converter.target_patterns, converter.source_patterns)
    return {source: _listed(held, source) for source in converter.source_patterns}


def _listed(held: Mapping[str, object], source: str) -> list[Tensor]:
    """The tensors of one source pattern: one, or one for each number that matches its `*`."""
    if source in held:
        return _as_list(held[source])
    numbered = [
        _as_list(held[name])[0] for name in (source.replace("*", str(n)) for n in range(len(held))) if name in held
    ]
    if not numbered:
        raise KeyError(source)
    return numbered


def _as_list(value: object) -> list[Tensor]:
    tensors = value if isinstance(value, list) else [value]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def _converted(model: PreTrainedModel, trial: _Trial, sources: _Tensors) -> _Tensors:
    converter = trial.converter
    held: dict[str, Any] = {name: list(tensors) for name, tensors in sources.items()}
    for operation in converter.operations:
        held = _applied(model, trial, operation, held, converter.source_patterns, converter.target_patterns)
    return {name: _as_list(value) for name, value in held.items()}


def _applied(
    model: PreTrainedModel, trial: _Trial, operation: Any, held: dict[str, Any], given: list[str], wanted: list[str]
) -> dict[str, Any]:
    """One of the client's operations, called as the client calls it."""
    made: dict[str, Any] = operation.convert(
        held,
        source_patterns=given,
        target_patterns=wanted,
        full_layer_name=trial.names[0],
        model=model,
        config=model.config,
    )
    return made


def _read(trial: _Trial, sources: _Tensors, *, rank: int, degree: int, size: int) -> _Tensors:
    """The parts of the checkpoint's tensors that one rank reads, which follow the placement of the first result."""
    placement, ndim = trial.placements[0], trial.ndims[0]
    if not isinstance(placement, Shard):
        return sources
    return {
        name: [
            read
            for number, tensor in enumerate(tensors)
            if (read := _read_of(tensor, placement, ndim, number % size, rank=rank, degree=degree, size=size))
            is not None
        ]
        for name, tensors in sources.items()
    }


def _read_of(
    tensor: Tensor, placement: Shard, ndim: int, number: int, *, rank: int, degree: int, size: int
) -> Tensor | None:
    """A rank's part of one checkpoint tensor; None if the rank reads none of it. If the tensor is one slice of dim 0 (one
    expert), a shard of dim 0 takes the whole tensor or nothing, and a shard of another dim takes a part without packed blocks.
    """
    if tensor.ndim == ndim:
        return part_of(tensor, placement, rank=rank, degree=degree)
    if placement.dim == 0:
        return tensor if number in part_of(torch.arange(size), placement, rank=rank, degree=degree) else None
    return part_of(tensor, Shard(placement.dim - 1), rank=rank, degree=degree)


def _placement(parts: list[Tensor], whole: Tensor, wanted: Placement) -> Placement | None:
    """The placement that yields these parts of a tensor; the wanted placement is tried first. None if there is no such
    placement.
    """
    degree = len(parts)
    blocks = [count for count in range(1, whole.shape[0] // degree + 1) if whole.shape[0] % (count * degree) == 0]
    shards = [Shard(dim, count) for dim in range(whole.ndim) for count in blocks]
    for placement in (wanted, R, *shards):
        if all(
            torch.equal(held, part_of(whole, placement, rank=rank, degree=degree)) for rank, held in enumerate(parts)
        ):
            return placement
    return None
