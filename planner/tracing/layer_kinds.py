"""Which layers of a stack run the same program, so that one of them can stand for the others.

Two layers are of one kind where everything that their modules hold agrees: classes, shapes, attributes (private ones too, and
what tuples, enums, objects, functions with their closures, and hooks hold). Only an integer that counts the layers may differ,
and only if the layer that runs does nothing with it but hand it to the cache: for the time of that run it is a `LayerNumber`,
which notes every other use. What layers share (objects, module globals, class attributes) has to be the same at the start of
both, and a layer that changes it stands for no other.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, cache_utils

from shardproof.planner.tracing.module_tree import HOOK_TABLES, INTERNAL

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_DEPTH = 6
"""How deep objects in objects are compared; what lies deeper is compared by identity."""


@dataclass(frozen=True, slots=True)
class LayerKind:
    """One layer of a stack: its position, and what is equal to that of another layer of the same kind."""

    position: int
    kind: object
    counters: tuple[tuple[str, str], ...]
    """The integers that count the layers: the path of the module below the layer, and the attribute."""
    stack: int


class Attributes:
    """The attributes of a layer's modules when somebody last looked: what has anybody else set since?"""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.look()

    def look(self) -> None:
        """Take what is held now as known."""
        self.held = [(path, vars(part), dict(vars(part))) for path, part in self.layer.named_modules()]

    def set_since(self) -> object:
        """The attributes that are other objects than they were, in a form that is equal for layers that compute the same."""
        changed = [
            (path, name, now.get(name))
            for path, now, before in self.held
            for name in (now if len(now) == len(before) else {**before, **now})
            if now.get(name) is not before.get(name) and name not in INTERNAL and name != "forward"
        ]
        if not changed:
            return ()
        paths = {id(part): path for path, part in self.layer.named_modules()}
        return tuple((path, name, _form(value, paths)) for path, name, value in changed)


def layer_kinds(model: nn.Module) -> dict[int, LayerKind]:
    """The kind of each member, by its id, of every `ModuleList` with several members that have parts of their own.

    A list of plain projections (query, key and value) is no stack of layers: what each gives may be a shard.
    """
    kinds: dict[int, LayerKind] = {}
    for stack in model.modules():
        if isinstance(stack, nn.ModuleList) and len(stack) > 1 and any(map(_has_parts, stack)):
            described = [_description(member) for member in stack]
            names = {name for description in described for name in description}
            counters = {name for name in names if _counts(name, described)}
            for position, (member, description) in enumerate(zip(stack, described, strict=True)):
                kept = tuple((key, None if key in counters else value) for key, value in description.items())
                own = tuple(name for name in counters if name in description)
                kinds[id(member)] = LayerKind(position, (id(stack), kept), own, id(stack))
    return kinds


def _has_parts(member: nn.Module) -> bool:
    return next(member.children(), None) is not None


def _counts(name: tuple[str, str], described: Sequence[Mapping[tuple[str, str], Any]]) -> bool:
    """Whether an attribute is a layer's position, or grows by the same step from each layer to the next."""
    given = [each[name] for each in described if name in each]
    found = [(at, value[1]) for at, each in enumerate(described) if _is_int(value := each.get(name, ()))]
    if not found or len(found) < len(given):
        return False
    if all(number == at for at, number in found):
        return True
    (x, first), (y, last) = found[0], found[-1]
    return (
        len(found) > 2 and first != last and all((n - first) * (y - x) == (last - first) * (at - x) for at, n in found)
    )


def _is_int(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and value[0] is int


def _description(layer: nn.Module) -> dict[tuple[str, str], Any]:
    """All that the modules of a layer hold, by module and name."""
    paths = {id(part): path for path, part in layer.named_modules()}
    found: dict[tuple[str, str], Any] = {}
    for path, part in layer.named_modules():
        found[path, "class"] = id(type(part))
        for name, value in vars(part).items():
            if name in ("_parameters", "_buffers"):
                found |= {(path, key): _form(tensor, paths) for key, tensor in value.items() if tensor is not None}
            elif name in HOOK_TABLES:
                found |= {(path, f"{name}{at}"): _form(hook, paths) for at, hook in enumerate(value.values())}
            elif name not in INTERNAL:
                found[path, name] = _form(value, paths)
    return found


def _form(value: object, paths: Mapping[int, str], depth: int = 0) -> Any:
    """Equal for values that code cannot tell apart, as far as this can be seen; else their identity."""
    if isinstance(value, _PLAIN):
        return (type(value), repr(value) if isinstance(value, float) else value)
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype, value.requires_grad)
    if isinstance(value, nn.Module):
        return ("module", paths.get(id(value), id(value)))
    if depth >= _DEPTH or isinstance(value, type | PreTrainedConfig | ModuleType | BuiltinFunctionType):
        return ("same", id(value))
    return _inner_form(value, paths, depth + 1)


def _inner_form(value: object, paths: Mapping[int, str], depth: int) -> Any:
    match value:
        case Enum():
            return (type(value), value.name)
        case tuple() | list():
            return (type(value), tuple(_form(one, paths, depth) for one in value))
        case set() | frozenset():
            return (type(value), frozenset(_form(one, paths, depth) for one in value))
        case dict():
            return (type(value), tuple((_form(k, paths, depth), _form(v, paths, depth)) for k, v in value.items()))
        case MethodType():
            return (value.__func__, _form(value.__self__, paths, depth))
        case partial():
            return (partial, _form((value.func, value.args, value.keywords), paths, depth))
        case FunctionType():
            cells = tuple(_cell(cell) for cell in value.__closure__ or ())
            return (value.__code__, _form((cells, value.__defaults__, value.__kwdefaults__), paths, depth))
        case _ if hasattr(value, "__dict__") and type(value).__module__ not in sys.stdlib_module_names:
            return (type(value), _form(dict(vars(value)), paths, depth))
        case _:
            return ("same", id(value))


def _cell(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


class LayerNumber:
    """An integer that counts the layers, for the time in which the first of them runs: it notes every use of it beside handing it
    on, and beside the use that Transformers' cache makes of it. `isinstance` takes it for an `int`.
    """

    __slots__ = ("uses", "value")

    def __init__(self, value: int, uses: list[str]) -> None:
        self.value, self.uses = value, uses

    @property  # type: ignore[misc]  # so that `isinstance(number, int)` holds
    def __class__(self) -> type:
        return int

    def _used(self, name: str) -> int:
        if sys._getframe(2).f_code.co_filename != cache_utils.__file__:
            self.uses.append(name)
        return self.value


_BOTH_WAYS = "add and divmod floordiv lshift mod mul or pow rshift sub truediv xor".split()
_REFLECTED = {
    **{f"__{name}__": f"__r{name}__" for name in _BOTH_WAYS},
    **{f"__r{name}__": f"__{name}__" for name in _BOTH_WAYS},
    "__lt__": "__gt__",
    "__gt__": "__lt__",
    "__le__": "__ge__",
    "__ge__": "__le__",
    "__eq__": "__eq__",
    "__ne__": "__ne__",
}
"""What the other operand is asked for where an integer does not know it."""


def _unknown(*_: object) -> Any:
    return NotImplemented


def _watched(name: str) -> Any:
    def method(self: LayerNumber, *args: Any) -> Any:
        own = self._used(name)
        given = [arg.value if type(arg) is LayerNumber else arg for arg in args]
        result = getattr(own, name)(*given)
        if result is not NotImplemented:
            return result
        # The other operand is no integer: it may know what to do with one.
        return getattr(type(given[0]), _REFLECTED.get(name, ""), _unknown)(given[0], own)

    method.__name__ = name
    return method


for (
    _name
) in """__abs__ __add__ __and__ __bool__ __ceil__ __divmod__ __eq__ __float__ __floor__ __floordiv__ __format__ __ge__
    __gt__ __hash__ __index__ __int__ __invert__ __le__ __lshift__ __lt__ __mod__ __mul__ __ne__ __neg__ __or__ __pos__ __pow__
    __radd__ __rand__ __rdivmod__ __repr__ __rfloordiv__ __rlshift__ __rmod__ __rmul__ __ror__ __round__ __rpow__ __rrshift__
    __rshift__ __rsub__ __rtruediv__ __rxor__ __str__ __sub__ __truediv__ __trunc__ __xor__""".split():
    setattr(LayerNumber, _name, _watched(_name))


@contextmanager
def numbered(layer: nn.Module, kind: LayerKind, uses: list[str]) -> Iterator[None]:
    """A layer whose counting attributes are `LayerNumber`s, which tell `uses`."""
    with ExitStack() as undo:
        for path, name in kind.counters:
            held = vars(layer.get_submodule(path))
            if type(value := held.get(name)) is int:
                undo.callback(held.__setitem__, name, value)
                held[name] = LayerNumber(value, uses)
        yield


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
    immutable = isinstance(
        value, (*_PLAIN, Tensor, tuple, frozenset, Enum, type, PreTrainedConfig, BuiltinFunctionType)
    )
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
    if isinstance(value, _PLAIN):
        return (kind, repr(value) if isinstance(value, float) else value)
    if isinstance(value, Tensor) or depth >= _DEPTH:
        return id(value)
    if isinstance(value, nn.Module):
        return tuple((k, _moment(v, _DEPTH)) for k, v in vars(value).items() if isinstance(v, _PLAIN))
    if isinstance(value, list | tuple | set | frozenset):
        return (type(value), tuple(_moment(one, depth + 1) for one in value))
    if isinstance(value, dict):
        return tuple((_moment(k, depth + 1), _moment(v, depth + 1)) for k, v in value.items())
    if isinstance(value, FunctionType):
        return (id(value), tuple(_moment(_cell(cell), depth + 1) for cell in value.__closure__ or ()))
    if _is_own_object(value):
        return (type(value), tuple((name, _moment(one, depth + 1)) for name, one in vars(value).items()))
    return id(value)
