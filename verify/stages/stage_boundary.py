"""The activations that pass a stage boundary, as the trace says, and their places in the arguments of layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from shardproof.planner.ir.dataflow import Cut, Entrance, Live, Role, live_across, live_across_each, unlisted
from shardproof.planner.ir.graph import Graph
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.planner.tracing.recorded_run import TraceError


@dataclass(frozen=True, slots=True)
class StageBoundary:
    """The activations that are sent at one cut, in an order that both of its stages share; none before the first and after the
    last.
    """

    values: tuple[Live, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The values' numbers in the graph."""
        return tuple(live.value for live in self.values)


def program_of(loaded: LoadedModel) -> Graph | None:
    """The program of a model; None where its forward cannot be traced."""
    try:
        return subject_of(on_meta(loaded)).graph
    except TraceError:
        return None


def possible(graph: Graph | None, stack: str, depth: int, before: tuple[str, ...]) -> tuple[int, ...]:
    """The layers that a stage can begin with, by the trace; every layer where there is no trace, or where it allows no cut."""
    every = tuple(range(1, depth))
    if graph is None:
        return every
    live = live_across_each(graph, stack, every, before)
    return tuple(cut for cut in every if all(one.role is not Role.MISSED for one in live[cut])) or every


def boundary(graph: Graph | None, cut: Cut, model: nn.Module) -> StageBoundary:
    """What is sent at a cut: by the trace, or without one the first argument of the layer at the cut.

    NB: values that the trace calls missed are left out here, and are no error. The run measures what comes of that: a run that
    relied on the proof's verdict could not contradict it.
    """
    if graph is None:
        names = argument_names(model.get_submodule(f"{cut.stack}.{cut.layer}"))
        return StageBoundary((Live(cut.layer - 1, Role.SENT, None, 0, (Entrance(cut.layer, names[0]),)),))
    return StageBoundary(tuple(live for live in live_across(graph, cut) if live.role is Role.SENT))


def sent(carried: StageBoundary, listed: Sequence[str], layer: nn.Module) -> StageBoundary:
    """Of what a cut must carry, what the plan's entry for the layers lists; `ValueError` where it lists none of it."""
    left = unlisted(carried.values, listed, argument_names(layer))
    if carried.values and len(left) == len(carried.values):
        raise ValueError("The pipeline plan lists no input of the layers that could be sent to a later stage.")
    return StageBoundary(tuple(live for live in carried.values if live not in left))


def tensor_at(
    module: nn.Module, args: Sequence[object], kwargs: Mapping[str, object], entrance: Entrance
) -> torch.Tensor:
    """The tensor at an entrance of a layer, given the arguments of its call."""
    leaves, _ = tree_flatten(argument(module, args, kwargs, entrance.argument))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)][entrance.leaf]


@dataclass(frozen=True, slots=True)
class ReceivedTensor:
    """A received tensor, and the recorded argument (on the meta device) that it is a part of."""

    tensor: torch.Tensor
    form: object = None


def put(
    module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], entrance: Entrance, received: ReceivedTensor
) -> tuple[tuple[object, ...], dict[str, object]]:
    """The arguments of a call with another tensor at an entrance. A dictionary is changed in place, since layers share it."""
    name, now = entrance.argument, argument(module, args, kwargs, entrance.argument)
    if isinstance(now, dict) and isinstance(received.form, dict):
        _put_in(now, received.form, entrance.leaf, received.tensor)
        return args, kwargs
    return with_argument(module, args, kwargs, name, _replaced(now, entrance.leaf, received.tensor))


def _put_in(now: dict[object, object], form: Mapping[object, object], leaf: int, tensor: torch.Tensor) -> None:
    """Put a tensor into a dictionary that an absent layer left empty; the recorded argument says under which key."""
    for key, value in form.items():
        count = sum(isinstance(one, torch.Tensor) for one in tree_flatten(value)[0])
        if leaf < count:
            now[key] = _replaced(now.get(key, value), leaf, tensor)
            return
        leaf -= count


def _replaced(value: object, leaf: int, tensor: torch.Tensor) -> object:
    leaves, form = tree_flatten(value)
    at = [place for place, one in enumerate(leaves) if isinstance(one, torch.Tensor)][leaf]
    return tree_unflatten([*leaves[:at], tensor, *leaves[at + 1 :]], form)


def with_argument(
    module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], name: str, value: object
) -> tuple[tuple[object, ...], dict[str, object]]:
    """The arguments of a call with another value for one of them; unchanged where that argument is not passed."""
    place = argument_names(module).index(name)
    if place < len(args):
        return (*args[:place], value, *args[place + 1 :]), kwargs
    return args, kwargs | {name: value} if name in kwargs else kwargs


def argument(module: nn.Module, args: Sequence[object], kwargs: Mapping[str, object], name: str) -> object:
    """The value of an argument in a call; `ValueError` where it is not passed."""
    if name in kwargs:
        return kwargs[name]
    names = argument_names(module)
    if name in names and names.index(name) < len(args):
        return args[names.index(name)]
    raise ValueError(f"{type(module).__name__} was traced with a tensor for {name!r}, and is called without.")


def argument_names(module: nn.Module) -> list[str]:
    """The parameters of a module's forward, in order."""
    return list(signature(type(module).forward).parameters)[1:]
