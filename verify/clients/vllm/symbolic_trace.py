"""How far vLLM's fusers can trace a module's forward with `torch.fx`; they do not see what comes later.

Source: vLLM 0.25.0 to 0.33.0, `vllm/model_executor/models/transformers/fx_utils.py`. Every child is a leaf. No cache and no
keyword is given, and sizes are known from `hidden_states` alone. Attention is a leaf where the forward gets it by
`get_interface`; where it indexes `ALL_ATTENTION_FUNCTIONS` the trace ends, since the engine's attention cannot run. A branch on
data ends the trace too. Fusers match what was traced until then.
"""

import inspect
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from unittest import mock
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import AttentionInterface

from shardproof.planner.transformers_facts.caches import CACHE_NAMES

_TOKENS = 8
_UNKNOWN = "unknown"
_ENGINE = "engine"
"""The name of an attention implementation that no forward compares with."""


@dataclass(frozen=True, slots=True)
class Traced:
    """The direct children that were called before the trace ended, and whether the whole forward was traced.

    `failed` is what ended the trace before the forward began: then nothing is known of what the engine's own trace sees.
    """

    children: frozenset[str]
    finished: bool
    failed: str = ""


_kept: "WeakKeyDictionary[nn.Module, Traced]" = WeakKeyDictionary()


def traced(module: nn.Module) -> Traced:
    """One module's own forward, traced once; never raises."""
    if module not in _kept:
        _kept[module] = _traced(module)
    return _kept[module]


def _traced(module: nn.Module) -> Traced:
    tracer, failed = _Tracer(_extra_keywords(module)), ""
    names = inspect.signature(type(module).forward).parameters
    given = {name: None for name in CACHE_NAMES if name in names} or None
    try:
        with _engine_attention(module), _undecorated(type(module)):
            tracer.trace(module, concrete_args=given)
        finished = True
    except Exception as error:  # whatever a forward cannot do with symbols
        finished, failed = False, f"{type(error).__name__}: {error}"
    graph = getattr(tracer, "graph", None)
    nodes = list(graph.nodes) if graph is not None else []
    began = any(node.op == "placeholder" for node in nodes)
    children = frozenset(str(node.target) for node in nodes if node.op == "call_module")
    return Traced(children, finished, "" if finished or began else failed)


@contextmanager
def _undecorated(kind: type[nn.Module]) -> Iterator[None]:
    """With the forward itself in the place of its decorators, such as the one that takes a cache by its former name: the names of
    a decorator's own arguments are none that `torch.fx` can give values.
    """
    with mock.patch.object(kind, "forward", inspect.unwrap(kind.forward)):
        yield


class _Sized(fx.Proxy):
    """A proxy whose node has its value on the meta device, where it can be computed; lengths and items are read from the value.

    Attributes are nodes of their own, so that methods and shapes are evaluated like functions.
    """

    def __getattr__(self, name: str) -> fx.Proxy:  # type: ignore[override]  # not made only when it is used
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __len__(self) -> int:
        if (value := _value(self)) is _UNKNOWN:
            raise TypeError("a symbol without a known size has no length")
        return len(value)  # type: ignore[arg-type]  # or it raises, as it would

    def __setitem__(self, key: object, value: object) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class _Tracer(fx.Tracer):
    def __init__(self, keywords: str) -> None:
        super().__init__()
        self.keywords = keywords

    def is_leaf_module(self, *_: object, **__: object) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def create_node(self, kind: str, target: object, *args: object, **kwargs: object) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)  # type: ignore[arg-type]  # passed on as they came
        node.meta["value"] = _UNKNOWN
        with suppress(Exception):  # what does not run on the meta device stays unknown
            node.meta["value"] = self._evaluated(node)
        return node

    def iter(self, obj: fx.Proxy) -> Iterator[object]:
        value = _value(obj)
        if value is _UNKNOWN:
            return super().iter(obj)
        if not isinstance(value, tuple | list | torch.Tensor):
            return iter(())  # the names of no keywords
        return iter([operator.getitem(obj, index) for index in range(len(value))])

    def _evaluated(self, node: fx.Node) -> object:
        if node.op == "placeholder":
            name = str(node.target).lstrip("*")
            return {} if name == self.keywords else self._hidden_states() if name == "hidden_states" else _UNKNOWN
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.root)
            return value.to("meta") if isinstance(value, torch.Tensor) else value
        if node.op == "output" or any(given.meta["value"] is _UNKNOWN for given in node.all_input_nodes):
            return _UNKNOWN
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda given: given.meta["value"])
        match node.op:
            case "call_function":
                return node.target(*args, **kwargs)  # type: ignore[operator]  # of such a node it is a function
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case _:
                return _run(self.root.get_submodule(str(node.target)), args, kwargs)

    def _hidden_states(self) -> object:
        width = next((m.in_features for m in self.root.modules() if isinstance(m, nn.Linear)), 0)
        return torch.empty(1, _TOKENS, width, device="meta") if width else _UNKNOWN


_CALL = nn.Module.__call__


def _run(child: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """Run a child on the meta device, outside the trace, for which `nn.Module.__call__` is patched."""
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*child.named_parameters(), *child.named_buffers())
    }
    with mock.patch.object(nn.Module, "__call__", _CALL):
        return torch.func.functional_call(child, state, args, dict(kwargs))


def _value(symbol: fx.Proxy) -> object:
    return symbol.node.meta["value"]


def _extra_keywords(module: nn.Module) -> str:
    parameters = inspect.signature(type(module).forward).parameters.values()
    return next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD), "")


@contextmanager
def _engine_attention(module: nn.Module) -> Iterator[None]:
    """With the engine's attention in the config: a leaf where `get_interface` returns it, an error where a forward indexes it."""

    def unusable(*_: object, **__: object) -> object:
        raise RuntimeError("the engine's attention needs the engine")

    config = getattr(module, "config", None)
    config = config if isinstance(config, PreTrainedConfig) else None
    held = getattr(config, "_attn_implementation_internal", None)
    with (
        mock.patch.object(AttentionInterface, "get_interface", return_value=_leaf),
        mock.patch.object(AttentionInterface, "__getitem__", return_value=unusable),
    ):
        if config is not None:
            config._attn_implementation_internal = _ENGINE
        try:
            yield
        finally:
            if config is not None:
                config._attn_implementation_internal = held


def _leaf(*args: object, **_: object) -> object:
    """Attention as one node with two outputs of unknown shape."""
    symbols = tuple(arg for arg in args if isinstance(arg, fx.Proxy))
    return symbols[0].tracer.create_proxy("call_function", _attended, symbols, {}) if symbols else (_UNKNOWN, _UNKNOWN)


def _attended(*_: object) -> tuple[object, object]:
    return _UNKNOWN, _UNKNOWN
