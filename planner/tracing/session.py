"""What a trace patches, copies and remembers of a model, in one place: locked, re-entrant, and given back on every way out.

A trace patches torch for the whole process (`nn.Module.__call__`, its gradient mode, `torch.autocast`), and it changes the model
that it runs (local parameters, hooks, wrapped forwards). So one thread traces at a time, and it traces a private copy of a shared
model: whoever else reads the shared model never sees it changed.
"""

import copy
import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from operator import is_
from threading import RLock
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.jit._fuser import optimized_execution

from shardproof.planner.inputs.run_modes import RunMode, has_eager
from shardproof.planner.loading.implementations import asked_of
from shardproof.planner.transformers_facts.flex_attention import FLEX, flex_by_definition

T = TypeVar("T")

TRACING = RLock()
"""The lock that is held for the time of a trace: what is patched is patched for all threads."""

EAGER: dict[str, object] = {"_experts_implementation": "eager"}
"""Config fields held at these values, unless others were asked for: fused expert kernels want real data types."""

EAGER_ATTENTION: dict[str, object] = {"_attn_implementation_internal": "eager"}
"""The same for a trace of the modeling file's own attention function."""

NO_DATA_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"
"""Transformers' own switch for its checks of data (5.23.0, utils/import_utils.py, `torch_compilable_check`)."""

_copies: "WeakKeyDictionary[nn.Module, nn.Module]" = WeakKeyDictionary()
_private: "WeakSet[nn.Module]" = WeakSet()
_found: "WeakKeyDictionary[nn.Module, dict[str, Any]]" = WeakKeyDictionary()


def remembered(model: nn.Module, what: str, find: Callable[[], T]) -> T:
    """What was found of a model before: only of a private copy, for nobody else changes that between two traces."""
    if model not in _private:
        return find()
    known = _found.setdefault(model, {})
    if what not in known:
        known[what] = find()
    found: T = known[what]
    return found


def only_traced(model: nn.Module) -> nn.Module:
    """A model that nobody changes between traces, so that what a trace found of it may be remembered."""
    _private.add(model)
    return model


def forget(model: nn.Module) -> None:
    """The model was changed: what was found of it holds no longer."""
    _found.pop(model, None)


@dataclass
class GradientMode:
    """Whether the traced forward wants gradients at this moment: torch's gradient mode as the modeling code sees it."""

    enabled: bool = True
    before: list[bool] = field(default_factory=list)

    def set(self, enabled: bool) -> None:
        """In place of `torch._C._set_grad_enabled`."""
        self.enabled = enabled

    def enter(self) -> None:
        """Gradients are off until `leave`, as in `torch.inference_mode`."""
        self.before.append(self.enabled)
        self.enabled = False

    def leave(self) -> None:
        """As before the last `enter`."""
        self.enabled = self.before.pop()


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """A trace makes many small objects that stay: looking through them for cycles again and again is a third of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def private_copy(model: nn.Module) -> Iterator[nn.Module]:
    """The session's own copy of a shared model, made once, to be run and changed until this ends.

    Parameters and buffers are the shared model's own, so that a copy costs little memory; modules and configs are not.
    """
    with TRACING:
        if model not in _copies:
            _copies[model] = structural_copy(model)
            _private.add(_copies[model])
        yield _copies[model]


def structural_copy(model: nn.Module) -> nn.Module:
    """A model of modules and configs of its own, which hold the same parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


@contextmanager
def recording(
    model: nn.Module, mode: RunMode, *, call: Callable[..., Any], apply: Callable[..., Any], gradients: GradientMode
) -> Iterator[None]:
    """Torch and the configs as one trace needs them, for the time of one forward.

    Args:
        model: the model that runs; fields of its configs are held at `EAGER`.
        mode: in training all modules are in training mode; beside decoding no config asks for a cache; where eager attention is
            asked for, every config names it.
        call: takes the place of `nn.Module.__call__`, with the original as its first argument.
        apply: takes the place of `torch.autograd.Function.apply`; its first arguments are the original, bound, and the class.
        gradients: answers and hears torch's gradient mode in place of torch: a trace builds no gradients itself.
    """
    with TRACING, ExitStack() as undo:
        _patch(undo, nn.Module, "__call__", lambda original: lambda *args, **kwargs: call(original, *args, **kwargs))
        # `no_grad`, `enable_grad`, `set_grad_enabled` and their decorators all ask and set the mode through these two.
        _patch(undo, torch, "is_grad_enabled", lambda original: lambda: gradients.enabled)
        _patch(undo, torch._C, "_set_grad_enabled", lambda original: gradients.set)
        _patch(undo, torch.inference_mode, "__enter__", lambda original: lambda self: gradients.enter())
        _patch(undo, torch.inference_mode, "__exit__", lambda original: lambda self, *error: gradients.leave())
        _patch(undo, torch.autocast, "__init__", _autocast_on_meta)
        _patch(undo, torch.autograd.Function, "apply", lambda original: classmethod(_applied(original, apply)))
        configs = {id(c): c for c in (getattr(module, "config", None) for module in model.modules()) if c is not None}
        held = EAGER if mode is RunMode.DECODING else EAGER | {"use_cache": False}
        held = held | EAGER_ATTENTION if mode is RunMode.EAGER else held
        if (experts := asked_of(model).experts) is not None:
            held = {**held, "_experts_implementation": experts}
        if any(getattr(config, "_attn_implementation", None) == FLEX for config in configs.values()):
            undo.enter_context(flex_by_definition())
        for config in configs.values():
            for name, value in held.items():
                if hasattr(config, name):
                    undo.callback(setattr, config, name, getattr(config, name))
                    setattr(config, name, value)
        if mode is RunMode.EAGER and has_eager(model):
            raise NotImplementedError(
                "eager attention cannot be set on the config that this version of Transformers has"
            )
        if mode is RunMode.TRAINING:
            for module in model.modules():
                undo.callback(setattr, module, "training", module.training)
                module.training = True
        _hold_environment(undo)
        # Scripted functions run op by op: a fused kernel hides its ops, and the fuser knows no meta device.
        undo.enter_context(optimized_execution(False))
        yield


def _patch(undo: ExitStack, owner: Any, name: str, made_of: Callable[[Any], Any]) -> None:
    """Exchange one method for the time of a trace; the traces of one thread may lie in each other."""
    original = vars(owner)[name]
    undo.callback(setattr, owner, name, original)
    setattr(owner, name, made_of(original))


def _applied(original: Any, apply: Callable[..., Any]) -> Callable[..., Any]:
    def applied(kind: type[Any], *args: Any, **kwargs: Any) -> Any:
        return apply(original.__get__(None, kind), kind, *args, **kwargs)

    return applied


def _autocast_on_meta(original: Callable[..., None]) -> Callable[..., None]:
    """`autocast(x.device.type, enabled=False)` is how modeling code keeps its precision; torch knows no autocast on meta."""

    def init(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type == "meta" else device_type, *args, **kwargs)

    return init


def _hold_environment(undo: ExitStack) -> None:
    """No checks of data, which is not there: neither Transformers' nor those of torch's distributions."""
    checks, validated = os.environ.get(NO_DATA_CHECKS), Distribution._validate_args
    undo.callback(Distribution.set_default_validate_args, validated)
    if checks is None:
        undo.callback(os.environ.pop, NO_DATA_CHECKS, None)
    else:
        undo.callback(os.environ.__setitem__, NO_DATA_CHECKS, checks)
    os.environ[NO_DATA_CHECKS] = "1"
    Distribution.set_default_validate_args(False)


_TABLES = (
    *("_buffers", "_parameters", "_modules", "_non_persistent_buffers_set"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks"),
)


@dataclass(frozen=True, slots=True)
class ModuleState:
    """The attributes of one module before its forward, and what the plain containers among them held."""

    module: nn.Module
    attributes: dict[str, Any]
    contents: tuple[tuple[Any, Any], ...]

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """As the module is now."""
        return cls(module, dict(vars(module)), tuple((value, value.copy()) for value in _containers(module)))

    def added(self) -> list[Tensor]:
        """The tensors that the forward has put into attributes of the module."""
        now = vars(self.module).items()
        return [value for name, value in now if isinstance(value, Tensor) and self.attributes.get(name) is not value]

    def changed(self) -> bool:
        """Whether the forward has given the module other attributes, or its containers other contents."""
        before, now = self.attributes, vars(self.module)
        if not _holds_the_same(now, before):
            names = (before.keys() | now.keys()) - {"training"}
            if any(before.get(name, self) is not now.get(name, self) for name in names):
                return True
        return any(
            _items(container) != _items(content)
            for container, content in self.contents
            if (container or content) and not (isinstance(container, dict) and _holds_the_same(container, content))
        )

    def restore(self) -> None:
        """Put everything back as it was."""
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for container, content in self.contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


def _holds_the_same(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    """Whether two dictionaries hold the same objects in the same order: most do, and this is quick."""
    return one.keys() == other.keys() and all(map(is_, one.values(), other.values()))


def _items(container: Any) -> list[int] | set[int] | dict[Any, int]:
    """What a list, a set or a dictionary holds, by identity."""
    if isinstance(container, dict):
        return {key: id(value) for key, value in container.items()}
    return {id(one) for one in container} if isinstance(container, set) else [id(one) for one in container]


def _containers(module: nn.Module) -> Iterator[Any]:
    """The module's own tables of tensors and hooks, and the lists and dictionaries that modeling code put there."""
    for name, value in vars(module).items():
        if name in _TABLES or (type(value) in (dict, list, set) and not name.startswith("_")):
            yield value
