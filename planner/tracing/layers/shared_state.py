"""What the layers of a stack share beside their arguments: state in which one can leave something for the next."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from shardproof.planner.tracing.layers.layer_kinds import DEPTH, PLAIN, cell_contents
from shardproof.planner.tracing.module_tree import INTERNAL


@dataclass
class SharedState:
    """What layers of a stack share beside their arguments, and can leave something in for each other."""

    objects: list[Any] = field(default_factory=list)
    tables: list[tuple[Mapping[str, Any], tuple[str, ...]]] = field(default_factory=list)

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> "SharedState":
        """Of layers: objects in their attributes, and the globals and class attributes of the code that they run."""
        state, seen = cls(), set[int]()
        kinds = {kind for layer in layers for part in layer.modules() for kind in type(part).__mro__}
        for kind in (one for one in kinds if issubclass(one, nn.Module) and not one.__module__.startswith("torch.")):
            state._add_table(vars(kind), seen)
            for module in _modules_of(kind):
                state._add_table(vars(module), seen)
        inside = {id(part) for layer in layers for part in layer.modules()}
        for layer in layers:
            for part in layer.modules():
                for name, value in vars(part).items():
                    if name not in INTERNAL and id(value) not in seen and _can_change(value, inside):
                        seen.add(id(value))
                        state.objects.append(value)
        return state

    def _add_table(self, table: Mapping[str, Any], seen: set[int]) -> None:
        if id(table) not in seen:
            seen.add(id(table))
            names = tuple(name for name, value in table.items() if _is_state(name, value))
            if names:
                self.tables.append((table, names))

    def keep(self) -> Callable[[], None]:
        """Remember the numbers and containers among globals and in shared objects; what is returned puts them back."""
        tables = [(table, name) for table, names in self.tables for name in names]
        own = (vars(one) for one in self.objects if _is_own_object(one) and not isinstance(one, nn.Module))
        tables += [(table, name) for table in own for name in list(table)]
        held: list[tuple[Mapping[str, Any], str, Any, Any]] = [
            (table, name, value, copy(value))
            for table, name in tables
            if isinstance(value := table.get(name), bool | int | float | list | dict | set)
        ]

        def put_back() -> None:
            for table, name, value, before in held:
                if isinstance(value, list):
                    value[:] = before
                elif isinstance(value, dict | set):
                    value.clear()
                    value.update(before)
                if isinstance(table, dict) and table.get(name) is not value:
                    table[name] = value

        return put_back

    def now(self) -> object:
        """The state at this moment: equal to that of another moment where nothing changed."""
        tables = tuple(tuple(_moment(table.get(name)) for name in names) for table, names in self.tables)
        return tables, tuple(_moment(one) for one in self.objects)


def memos_of(model: nn.Module) -> tuple[Any, ...]:
    """The functions with `functools.lru_cache` among the globals and class attributes of the code that a model runs."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    own = [one for one in kinds if issubclass(one, nn.Module) and not one.__module__.startswith("torch.")]
    tables = [vars(kind) for kind in own] + [vars(module) for kind in own for module in _modules_of(kind)]
    found = {id(value): value for table in tables for value in table.values() if isinstance(value, _Memo)}
    return tuple(found.values())


@contextmanager
def without_memos(memos: Iterable[Any]) -> Iterator[None]:
    """What such functions keep is made anew, so that every trace shows it, and no tensor on meta is kept for later."""
    for memo in memos:
        memo.cache_clear()
    try:
        yield
    finally:
        for memo in memos:
            memo.cache_clear()


_Memo = type(lru_cache(int))


def _modules_of(kind: type) -> Iterator[ModuleType]:
    """The Python module of a class, and those of the functions that it has imported."""
    own = sys.modules.get(kind.__module__)
    if own is None:
        return
    yield own
    for value in list(vars(own).values()):
        listed = value.values() if isinstance(value, dict) else (value,)
        names = {one.__module__ for one in listed if isinstance(one, FunctionType)} - {own.__name__}
        for name in names:
            if name and name.partition(".")[0] not in _LIBRARIES and name in sys.modules:
                yield sys.modules[name]


def _is_state(name: str, value: object) -> bool:
    """Whether a global or a class attribute can change what a layer computes: a number, a container, an object of own code."""
    if name.startswith("__") or isinstance(value, type | ModuleType | FunctionType | BuiltinFunctionType | str):
        return False
    if isinstance(value, bool | int | float | list | dict | set):
        return not _is_table(value)
    return _is_own_object(value)


def _is_own_object(value: object) -> bool:
    """Whether an object is of a class of the model's own code, which may keep anything in it."""
    return hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _LIBRARIES


_LIBRARIES = frozenset({*sys.stdlib_module_names, "torch", "transformers", "typing_extensions", "numpy"})


def _can_change(value: object, inside: set[int]) -> bool:
    """Whether an attribute can be changed by who holds it too: no number, and no module of the layer."""
    if isinstance(value, nn.Module):
        return id(value) not in inside
    if isinstance(value, FunctionType):
        return value.__closure__ is not None
    immutable = isinstance(value, (*PLAIN, Tensor, tuple, frozenset, Enum, type, PreTrainedConfig, BuiltinFunctionType))
    return not immutable and not isinstance(value, ModuleType | MethodType)


_AS_THEY_ARE = frozenset({bool, int, str, type(None)})


_FIXED = frozenset({type, type(nn.Module), BuiltinFunctionType, ModuleType})


def _is_table(value: object) -> bool:
    """A table of classes and functions, by names: it is made where its module is imported, and read afterwards."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list | set) else ()
    return bool(entries) and all(
        isinstance(one, type | FunctionType | BuiltinFunctionType | tuple | str) for one in entries
    )


def _moment(value: object, depth: int = 0) -> Any:
    """A value at this moment, tensors by identity."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return (kind, value)
    if kind in _FIXED:
        return id(value)
    if isinstance(value, PLAIN):
        return (kind, repr(value) if isinstance(value, float) else value)
    if isinstance(value, Tensor) or depth >= DEPTH:
        return id(value)
    if isinstance(value, nn.Module):
        return tuple((k, _moment(v, DEPTH)) for k, v in vars(value).items() if isinstance(v, PLAIN))
    if isinstance(value, list | tuple | set | frozenset):
        return (type(value), tuple(_moment(one, depth + 1) for one in value))
    if isinstance(value, dict):
        return tuple((_moment(k, depth + 1), _moment(v, depth + 1)) for k, v in value.items())
    if isinstance(value, FunctionType):
        return (id(value), tuple(_moment(cell_contents(cell), depth + 1) for cell in value.__closure__ or ()))
    if _is_own_object(value):
        return (type(value), tuple((name, _moment(one, depth + 1)) for name, one in vars(value).items()))
    return id(value)
