"""Input and output activations of every module in one forward, in the order in which the modules finish."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from shardproof.planner.weights.shards import local


@dataclass(frozen=True, slots=True)
class ModuleActivations:
    """The first input tensor (`taken`) and the first output tensor (`given`) of a module; None where there is none."""

    module: str
    taken: torch.Tensor | None
    given: torch.Tensor | None


@dataclass(slots=True)
class ActivationRecorder(AbstractContextManager["ActivationRecorder"]):
    """Records activations while it is entered. `inside` is the path of the module that runs, also after it raised.

    Without `keep` only `inside` is kept track of.
    """

    model: nn.Module
    keep: bool = True
    activations: list[ModuleActivations] = field(default_factory=list)
    _running: list[tuple[str, torch.Tensor | None]] = field(default_factory=list)
    _handles: list[RemovableHandle] = field(default_factory=list)

    @property
    def inside(self) -> str:
        """The innermost module whose forward has begun and not ended."""
        return self._running[-1][0] if self._running else ""

    def __enter__(self) -> "ActivationRecorder":
        for name, module in self.model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._begin(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._end))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, name: str):  # type: ignore[no-untyped-def]  # a hook: torch types it loosely
        def begin(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            self._running.append((name, _first([*args, *kwargs.values()]) if self.keep else None))

        return begin

    def _end(self, _: nn.Module, __: object, output: object) -> None:
        name, taken = self._running.pop()
        if self.keep:
            self.activations.append(ModuleActivations(name, taken, _first(output)))


def _first(value: object) -> torch.Tensor | None:
    """A copy of the first floating-point tensor in nested outputs; a copy, since collectives write in place."""
    if isinstance(value, torch.Tensor):
        return local(value).detach().clone() if value.is_floating_point() else None
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((found for item in items if (found := _first(item)) is not None), None)
