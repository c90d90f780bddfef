"""Which layers of a stack run the same program, so that one of them can stand for the others.

Two layers are of one kind where everything that their modules hold agrees: classes, shapes, attributes (private ones too, and
what tuples, enums, objects, functions with their closures, and hooks hold). Only an integer that counts the layers may differ,
and only if the layer that runs does nothing with it but hand it to the cache: for the time of that run it is a `LayerNumber`,
which notes every other use. What layers share (objects, module globals, class attributes) has to be the same at the start of
both, and a layer that changes it stands for no other.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from shardproof.planner.tracing.module_tree import HOOK_TABLES, INTERNAL

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""Classes of values that are compared as they are."""
DEPTH = 6
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
        if isinstance(stack, nn.ModuleList) and len(stack) > 1 and _are_layers(stack):
            described = [_description(member) for member in stack]
            names = {name for description in described for name in description}
            counters = {name for name in names if _counts(name, described)}
            for position, (member, description) in enumerate(zip(stack, described, strict=True)):
                kept = tuple((key, None if key in counters else value) for key, value in description.items())
                own = tuple(name for name in counters if name in description)
                kinds[id(member)] = LayerKind(position, (id(stack), kept), own, id(stack))
    return kinds


def _are_layers(members: Iterable[nn.Module | None]) -> bool:
    """Whether some members of a list have parts; a list with empty places holds the parts of one layer."""
    found = list(members)
    return None not in found and any(next(member.children(), None) is not None for member in found if member)


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
    if isinstance(value, PLAIN):
        return (type(value), repr(value) if isinstance(value, float) else value)
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype, value.requires_grad)
    if isinstance(value, nn.Module):
        return ("module", paths.get(id(value), id(value)))
    if depth >= DEPTH or isinstance(value, type | PreTrainedConfig | ModuleType | BuiltinFunctionType):
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
            cells = tuple(cell_contents(cell) for cell in value.__closure__ or ())
            return (value.__code__, _form((cells, value.__defaults__, value.__kwdefaults__), paths, depth))
        case _ if hasattr(value, "__dict__") and type(value).__module__ not in sys.stdlib_module_names:
            return (type(value), _form(dict(vars(value)), paths, depth))
        case _:
            return ("same", id(value))


def cell_contents(cell: Any) -> object:
    """What a variable of a closure holds; None where nothing is in it yet."""
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
