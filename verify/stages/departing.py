"""Departures put into effect: what they change of a stage's model before it runs, and of the stage that is built of it."""

from collections.abc import Callable, Iterable, Iterator
from inspect import unwrap
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from shardproof.planner.ir.dataflow import Entrance
from shardproof.verify.stages.cuts import Received, argument, argument_names, given, put
from shardproof.verify.stages.departures import Departure, Slip
from shardproof.verify.stages.stage import Layout, Stage


def set_up(model: nn.Module, layout: Layout, departures: Iterable[Departure], stage: int) -> None:
    """What departures change of a stage's model before it runs."""
    own = [model.get_submodule(layout.layer(number)) for number in layout.chunks[stage]]
    for one in departures:
        if one.stage != stage:
            continue
        match one.slip:
            case Slip.LOCAL_INDEX:
                _renumber(model.get_submodule(layout.layers), layout.chunks[stage])
            case Slip.UNTIED:
                owner, _, name = one.what.rpartition(".")
                weight = model.get_parameter(one.what)
                setattr(model.get_submodule(owner), name, nn.Parameter(torch.zeros_like(weight)))
            case Slip.FROZEN:
                for layer in own:
                    layer.requires_grad_(False)
            case _:
                pass


def indices(layers: nn.Module) -> Iterator[tuple[str, str]]:
    """Integer attributes, by module inside a layer and name, that number the layers of a list which have them, and that code
    reads besides the constructor's.
    """
    found: dict[tuple[str, str], list[bool]] = {}
    read: dict[type, set[str]] = {}
    for at, layer in enumerate(layers.children()):
        for path, part in layer.named_modules():
            kind: type = type(part)
            if kind not in read:
                read[kind] = _read(kind)
            for name, value in vars(part).items():
                if type(value) is int and name in read[kind]:
                    found.setdefault((path, name), []).append(value == at)
    yield from (place for place, own in found.items() if len(own) > 1 and all(own))


def _read(kind: type) -> set[str]:
    """The names that the methods of a module's class use, but for its constructor."""
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    methods = (
        unwrap(value) for base in bases for key, value in vars(base).items() if key != "__init__" and callable(value)
    )
    return set().union(*(_names(method.__code__) for method in methods if isinstance(method, FunctionType)))


def _names(code: CodeType) -> set[str]:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def numbered_parts(layers: nn.Module, own: range) -> Iterator[tuple[str, str]]:
    """The parts of own layers that have such an attribute: their path below the list, and its name."""
    names, members = list(indices(layers)), list(layers.children())
    for number in own:
        parts = dict(members[number].named_modules())
        for path, name in names:
            if name in vars(parts.get(path, layers)):
                yield (f"{number}.{path}" if path else str(number)), name


def _renumber(layers: nn.Module, own: range) -> None:
    for path, name in list(numbered_parts(layers, own)):
        setattr(layers.get_submodule(path), name, int(path.partition(".")[0]) - own.start)


def depart(stage: Stage, departures: Iterable[Departure], place: int) -> None:
    """What departures change of a stage that is built."""
    for one in departures:
        if one.stage != place:
            continue
        match one.slip:
            case Slip.AGAIN:
                _again(stage, one.what)
            case Slip.SKIPPED:
                _skip(stage, one.what)
            case Slip.APPLIED:
                module = stage.model.get_submodule(one.what)
                stage.register_forward_hook(_first_through(module))
            case Slip.UNPASSED:
                for number in stage.own:
                    _unpass(stage.model.get_submodule(stage.layout.layer(number)), one.what)
            case Slip.TAKES:
                _take(stage, one)
            case Slip.UNASKED:
                stage.register_forward_pre_hook(_without(one.what), with_kwargs=True)
            case Slip.BARE:
                _strip(stage, place)
            case _:
                pass


def _again(stage: Stage, name: str) -> None:
    """Absent layers then hand on what they are given, as in runtimes that do so."""
    first = stage.receives.numbers[0]
    stage.elsewhere.add(first)
    vars(stage.model.get_submodule(name))["forward"] = lambda *_, **__: stage.held[first]
    for number in range(stage.own.start):
        layer = stage.model.get_submodule(stage.layout.layer(number))
        vars(layer)["forward"] = _handing_on(vars(layer)["forward"], argument_names(layer)[0])


def _handing_on(answer: Callable[..., object], name: str) -> Callable[..., object]:
    def forward(*args: object, **kwargs: object) -> object:
        leaves, form = tree_flatten(answer(*args, **kwargs))
        return tree_unflatten([args[0] if args else kwargs[name], *leaves[1:]], form)

    return forward


def _skip(stage: Stage, name: str) -> None:
    layer, made = stage.model.get_submodule(stage.layout.layer(0)), list[torch.Tensor]()
    entrance = Entrance(0, argument_names(layer)[0])
    stage.model.get_submodule(name).register_forward_hook(lambda _, __, output: made.append(output))
    layer.register_forward_pre_hook(lambda _, a, k: put(layer, a, k, entrance, Received(made.pop())), with_kwargs=True)


def _first_through(module: nn.Module) -> Callable[..., object]:
    """A hook that applies a module to the first of what is given."""

    def hook(_: nn.Module, __: object, output: object) -> object:
        if isinstance(output, tuple):
            return (module(output[0]).contiguous(), *output[1:])
        return output

    return hook


def _unpass(layer: nn.Module, name: str) -> None:
    layer.register_forward_pre_hook(lambda _, a, k: given(layer, a, k, name, None), with_kwargs=True)


def _take(stage: Stage, one: Departure) -> None:
    """The other layer comes before this one, whichever stage runs it: the loop calls every layer on every stage."""
    source, target = (stage.model.get_submodule(stage.layout.layer(n)) for n in (one.other, one.layer))
    kept_here: list[object] = [None]

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept_here[0] = argument(source, args, kwargs, one.what)

    source.register_forward_pre_hook(keep, with_kwargs=True)
    target.register_forward_pre_hook(lambda _, a, k: given(target, a, k, one.what, kept_here[0]), with_kwargs=True)


def _without(name: str) -> Callable[..., object]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {key: value for key, value in kwargs.items() if key != name}

    return hook


def _strip(stage: Stage, place: int) -> None:
    layers = stage.model.get_submodule(stage.layout.layers)
    assert isinstance(layers, nn.ModuleList)
    for number in range(stage.layout.depth):
        if number not in stage.layout.chunks[place]:
            layers[number] = _Placeholder(layers[number])


class _Placeholder(nn.Module):
    """Answers as an absent layer does, and has none of its attributes."""

    def __init__(self, absent: nn.Module) -> None:
        super().__init__()
        self._forward_pre_hooks = absent._forward_pre_hooks
        self._forward_pre_hooks_with_kwargs = absent._forward_pre_hooks_with_kwargs
        vars(self)["forward"] = vars(absent)["forward"]
