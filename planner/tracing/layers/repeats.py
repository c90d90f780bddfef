"""Run the first layer of each kind, and let it stand for the later ones that are called alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from shardproof.planner.inputs.run_modes import RunMode
from shardproof.planner.tracing.layers.layer_kinds import Attributes, LayerKind
from shardproof.planner.tracing.layers.layer_number import LayerNumber, numbered
from shardproof.planner.tracing.layers.shared_state import SharedState
from shardproof.planner.tracing.recorder import Recorder

_every_layer: "WeakKeyDictionary[nn.Module, set[RunMode]]" = WeakKeyDictionary()
"""Of each model the modes in which a trace runs every layer."""


def runs_every_layer(model: nn.Module, mode: RunMode) -> bool:
    """Whether traces of a model in a mode let no layer stand for another."""
    return mode in _every_layer.get(model, ())


def run_every_layer(model: nn.Module, mode: RunMode) -> None:
    """From now on, traces of a model in a mode let no layer stand for another."""
    _every_layer.setdefault(model, set()).add(mode)


def let_layers_repeat(model: nn.Module, mode: RunMode) -> None:
    """From now on, a layer may stand for another again in traces of a model in a mode."""
    _every_layer.get(model, set()).discard(mode)


class LayerRepeats:
    """The layers of one trace: the first of a kind runs, the next ones called alike become `repeat`.

    `stands_for` maps the path of each layer that did not run to that of the layer that stands for it.
    """

    def __init__(
        self,
        recorder: Recorder,
        paths: Mapping[int, str],
        kinds: Mapping[int, LayerKind],
        shared: Mapping[int, SharedState],
    ) -> None:
        self.recorder, self.paths, self.kinds, self.shared = recorder, paths, kinds, shared
        self.stands_for: dict[str, str] = {}
        self._first: dict[object, str] = {}
        self._gave: dict[str, _Gave] = {}
        self.without_state = False
        """Whether a layer ran for which another stood in an earlier forward: what it would have left in its cache is missing."""
        self._apart: set[object] = set()
        """Calls whose layer leaves something behind, so that each of its kind has to run."""

    def wrap(self, layer: nn.Module) -> Callable[[], None]:
        """Wrap a layer's forward; what is returned puts the forward back."""
        original, held = layer.forward, vars(layer).get("forward")

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.recorder.running is layer:
                return self._call(attributes, original, args, kwargs)
            self.recorder.stack.append(
                (self.paths[id(layer)], layer)
            )  # its `forward` is called, past the module's call
            try:
                return forward(*args, **kwargs)
            finally:
                self.recorder.stack.pop()

        def undo() -> None:
            del layer.forward
            if held is not None:
                layer.forward = held

        layer.forward = forward
        attributes = Attributes(layer)
        return undo

    def _call(
        self, attributes: Attributes, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        layer, recorder = attributes.layer, self.recorder
        path, kind = self.paths[id(layer)], self.kinds[id(layer)]
        shared = self.shared[kind.stack]
        tensors = tensors_in((args, kwargs))
        given = [recorder.number(tensor) for tensor in tensors]
        same = tuple(given.index(number) for number in given)  # what is read of one value that is given twice?
        state = shared.now()
        told = _call_signature(args, kwargs, kind.position)
        key = (kind.kind, attributes.set_since(), recorder.gradients.enabled, same, state, *told)
        if key in self._apart:
            self._runs(path)
            return original(*args, **kwargs)
        first = self._first.setdefault(key, path)
        if first != path and first in self._gave:
            return self._repeat(path, first, tensors)
        self._runs(path)
        uses: list[str] = []
        with numbered(layer, kind, uses):
            given_args = [_numbered(value, kind.position, uses) for value in args]
            given_kwargs = {name: _numbered(value, kind.position, uses) for name, value in kwargs.items()}
            output = original(*given_args, **given_kwargs)
        attributes.look()  # what a layer keeps of its own run is part of what it stands for
        self._gave[path] = _Gave.of(output, given, recorder)
        if uses or shared.now() != state:
            self._apart.add(key)
        return output

    def _runs(self, path: str) -> None:
        self.without_state = self.without_state or path in self.stands_for

    def _repeat(self, path: str, first: str, tensors: list[Tensor]) -> Any:
        """What a layer gives for which the first of its kind stands."""
        self.stands_for[path] = first
        with self.recorder.silent():
            output, made = self._gave[first].again(tensors)
        if made:
            self.recorder.record("repeat", tensors, {}, made)
        return output


@dataclass(frozen=True, slots=True)
class _Gave:
    """What the first layer of a kind gave; of each tensor, which of those that it was given it is, where it is one."""

    output: Any
    passed: tuple[int | None, ...]

    @classmethod
    def of(cls, output: object, given: list[int], recorder: Recorder) -> "_Gave":
        numbers = [recorder.number(tensor) for tensor in tensors_in(output)]
        return cls(output, tuple(given.index(number) if number in given else None for number in numbers))

    def again(self, given: list[Tensor]) -> tuple[Any, list[Tensor]]:
        """What a later layer of the kind gives, and the tensors of it that are new."""
        made: list[Tensor] = []
        places = iter(self.passed)

        def one(tensor: Tensor) -> Tensor:
            place = next(places)
            if place is not None:
                return given[place]
            made.append(torch.empty_like(tensor))
            return made[-1]

        return tree_map_only(Tensor, one, self.output), made


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors anywhere in arguments or results, in order."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _call_signature(args: Sequence[Any], kwargs: Mapping[str, Any], position: int) -> tuple[object, ...]:
    """What makes two calls alike; a layer that is handed its own position in the stack is called like its siblings."""
    leaves, spec = tree_flatten((args, dict(kwargs)))
    return (
        str(spec),
        *((tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else _plain(leaf, position) for leaf in leaves),
    )


def _plain(value: object, position: int) -> object:
    if type(value) is int and value == position:
        return "position"
    plain = isinstance(value, bool | int | float | str | None | torch.dtype | torch.device | Enum)
    return (type(value), value) if plain else (type(value), id(value))


def _numbered(value: Any, position: int, uses: list[str]) -> Any:
    """An argument; a layer's own position is a `LayerNumber`. Containers stay themselves: a layer may leave something there."""
    return LayerNumber(value, uses) if type(value) is int and value == position else value
