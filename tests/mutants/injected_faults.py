"""Mistakes of stage runtimes, injected into the stages of a case: as data, and what each changes of a stage.

The proof traces, and the ranks run, the same faulty stage. A case travels to ranks by pickle, so this module is imported there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from shardproof.planner.ir.dataflow import Entrance
from shardproof.verify.stages.faults import StageFaults
from shardproof.verify.stages.layer_index import numbered_parts
from shardproof.verify.stages.stage import Stage
from shardproof.verify.stages.stage_boundary import ReceivedTensor, argument, argument_names, put, with_argument
from shardproof.verify.stages.stage_layout import StageLayout


class FaultKind(StrEnum):
    """One kind of mistake; what `InjectedFault.what` names is the comment behind it."""

    PREAMBLE_AGAIN = (
        "received activations enter as the output of a module, so that all code after it runs again"  # module
    )
    PREAMBLE_SKIPPED = (
        "the first layer gets the output of a module, and the code between the two has no effect"  # module
    )
    MODULE_APPLIED = "a module is applied to the activations that are sent"  # module, kept on the stage
    MODULE_KEPT = "a module of another stage runs on this stage too"  # module
    ARGUMENT_NOT_PASSED = "the stage's own layers are called without an argument"  # argument
    ARGUMENT_OF_OTHER_LAYER = "a layer gets an argument of another layer"  # argument
    LOCAL_INDEX = "the stage's own layers are numbered from 0"
    UNTIED = "a tied weight is not loaded"  # parameter
    GRADIENT_NOT_SUMMED = "the gradient of a tied weight is not summed over the stages"  # parameter
    WRONG_PEER = "two stages stand in each other's place"
    FROZEN = "the stage's own layers are frozen at set-up"
    INPUT_NOT_PASSED = "an argument of the caller does not reach the stage's model"  # argument
    BARE_PLACEHOLDER = "absent layers are placeholders without attributes"


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """One mistake on one stage; `layer` and `other` are layers (`ARGUMENT_OF_OTHER_LAYER`) or stages (`WRONG_PEER`)."""

    kind: FaultKind
    what: str = ""
    stage: int = 1
    layer: int = -1
    other: int = -1

    def __str__(self) -> str:
        places = f" {self.layer} <- {self.other}" if self.other >= 0 else ""
        where = f"stage {self.stage}: " if self.stage >= 0 else ""
        return f"{where}{self.kind.name.lower()} {self.what}{places}".rstrip()


@dataclass(frozen=True)
class InjectedFaults(StageFaults):
    """All mistakes of a case. Each stage but the last runs `overlap` layers more than its own (-1: one layer less)."""

    faults: tuple[InjectedFault, ...] = ()
    overlap: int = 0

    def chunks(self, chunks: tuple[range, ...]) -> tuple[range, ...]:
        return overlapping(chunks, self.overlap)

    def order(self, stages: int) -> tuple[int, ...]:
        order = list(range(stages))
        for one in self.faults:
            if one.kind is FaultKind.WRONG_PEER:
                order[one.layer], order[one.other] = order[one.other], order[one.layer]
        return tuple(order)

    def kept(self, stage: int) -> frozenset[str]:
        kinds = (FaultKind.MODULE_KEPT, FaultKind.MODULE_APPLIED)
        return frozenset(one.what for one in self.of_stage(stage) if one.kind in kinds)

    def not_summed(self) -> frozenset[str]:
        return frozenset(one.what for one in self.faults if one.kind is FaultKind.GRADIENT_NOT_SUMMED)

    def before_build(self, model: nn.Module, layout: StageLayout, stage: int) -> None:
        for one in self.of_stage(stage):
            _change_model(model, layout, one)

    def after_build(self, stage: Stage, number: int) -> None:
        for one in self.of_stage(number):
            _change_stage(stage, one)

    def of_stage(self, stage: int) -> tuple[InjectedFault, ...]:
        return tuple(one for one in self.faults if one.stage == stage)


def overlapping(chunks: tuple[range, ...], overlap: int) -> tuple[range, ...]:
    """Each chunk but the last with `overlap` layers more at its end (-1: one layer less)."""
    return (*(range(chunk.start, chunk.stop + overlap) for chunk in chunks[:-1]), chunks[-1])


def _change_model(model: nn.Module, layout: StageLayout, fault: InjectedFault) -> None:
    """What a fault changes of a stage's model before the stage is built."""
    own = layout.chunks[fault.stage]
    match fault.kind:
        case FaultKind.LOCAL_INDEX:
            _renumber(model.get_submodule(layout.layers), own)
        case FaultKind.UNTIED:
            owner, _, name = fault.what.rpartition(".")
            weight = model.get_parameter(fault.what)
            setattr(model.get_submodule(owner), name, nn.Parameter(torch.zeros_like(weight)))
        case FaultKind.FROZEN:
            for number in own:
                model.get_submodule(layout.layer(number)).requires_grad_(False)
        case _:
            pass


def _renumber(layers: nn.Module, own: range) -> None:
    for path, name in list(numbered_parts(layers, own)):
        setattr(layers.get_submodule(path), name, int(path.partition(".")[0]) - own.start)


def _change_stage(stage: Stage, fault: InjectedFault) -> None:
    """What a fault changes of a stage that is built."""
    match fault.kind:
        case FaultKind.PREAMBLE_AGAIN:
            _again(stage, fault.what)
        case FaultKind.PREAMBLE_SKIPPED:
            _skip(stage, fault.what)
        case FaultKind.MODULE_APPLIED:
            module = stage.model.get_submodule(fault.what)
            stage.register_forward_hook(_first_through(module))
        case FaultKind.ARGUMENT_NOT_PASSED:
            for number in stage.own:
                _unpass(stage.model.get_submodule(stage.layout.layer(number)), fault.what)
        case FaultKind.ARGUMENT_OF_OTHER_LAYER:
            _take(stage, fault)
        case FaultKind.INPUT_NOT_PASSED:
            stage.register_forward_pre_hook(_without(fault.what), with_kwargs=True)
        case FaultKind.BARE_PLACEHOLDER:
            _strip(stage, fault.stage)
        case _:
            pass


def _again(stage: Stage, name: str) -> None:
    """Absent layers then return their first argument, as in runtimes that do so."""
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
    layer.register_forward_pre_hook(
        lambda _, a, k: put(layer, a, k, entrance, ReceivedTensor(made.pop())), with_kwargs=True
    )


def _first_through(module: nn.Module) -> Callable[..., object]:
    """A hook that applies a module to the first output."""

    def hook(_: nn.Module, __: object, output: object) -> object:
        if isinstance(output, tuple):
            return (module(output[0]).contiguous(), *output[1:])
        return output

    return hook


def _unpass(layer: nn.Module, name: str) -> None:
    layer.register_forward_pre_hook(lambda _, a, k: with_argument(layer, a, k, name, None), with_kwargs=True)


def _take(stage: Stage, one: InjectedFault) -> None:
    """The other layer comes earlier; every stage calls all layers, absent ones too, so its arguments are seen on this stage."""
    source, target = (stage.model.get_submodule(stage.layout.layer(n)) for n in (one.other, one.layer))
    kept_here: list[object] = [None]

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept_here[0] = argument(source, args, kwargs, one.what)

    source.register_forward_pre_hook(keep, with_kwargs=True)
    target.register_forward_pre_hook(
        lambda _, a, k: with_argument(target, a, k, one.what, kept_here[0]), with_kwargs=True
    )


def _without(name: str) -> Callable[..., object]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {key: value for key, value in kwargs.items() if key != name}

    return hook


def _strip(stage: Stage, place: int) -> None:
    layers = stage.model.get_submodule(stage.layout.layers)
    assert isinstance(layers, nn.ModuleList)
    for number in range(stage.layout.depth):
        if number not in stage.layout.chunks[place]:
            layers[number] = _BarePlaceholder(layers[number])


class _BarePlaceholder(nn.Module):
    """Answers as an absent layer does, and has none of its attributes."""

    def __init__(self, absent: nn.Module) -> None:
        super().__init__()
        self._forward_pre_hooks = absent._forward_pre_hooks
        self._forward_pre_hooks_with_kwargs = absent._forward_pre_hooks_with_kwargs
        vars(self)["forward"] = vars(absent)["forward"]
