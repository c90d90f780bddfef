"""Attributes by which layers know their own number, and so find their place in a KV cache."""

from collections.abc import Iterator
from inspect import unwrap
from types import CodeType, FunctionType

from torch import nn


def numbered_parts(layers: nn.Module, own: range) -> Iterator[tuple[str, str]]:
    """Every such attribute of the layers `own` of a list: the path of its module below the list, and its name."""
    names, members = list(index_attributes(layers)), list(layers.children())
    for number in own:
        parts = dict(members[number].named_modules())
        for path, name in names:
            if name in vars(parts.get(path, layers)):
                yield (f"{number}.{path}" if path else str(number)), name


def index_attributes(layers: nn.Module) -> Iterator[tuple[str, str]]:
    """Attributes that hold the number of their layer, as (path of the module inside a layer, name of the attribute).

    Only attributes that a method besides the constructor reads.
    """
    found: dict[tuple[str, str], list[bool]] = {}
    read: dict[type, set[str]] = {}
    for at, layer in enumerate(layers.children()):
        for path, part in layer.named_modules():
            kind: type = type(part)
            if kind not in read:
                read[kind] = _names_read(kind)
            for name, value in vars(part).items():
                if type(value) is int and name in read[kind]:
                    found.setdefault((path, name), []).append(value == at)
    yield from (place for place, own in found.items() if len(own) > 1 and all(own))


def _names_read(kind: type) -> set[str]:
    """Names that the methods of a module's class use; those of its constructor do not count."""
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    methods = (
        unwrap(value) for base in bases for key, value in vars(base).items() if key != "__init__" and callable(value)
    )
    return set().union(*(_names_in(method.__code__) for method in methods if isinstance(method, FunctionType)))


def _names_in(code: CodeType) -> set[str]:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*map(_names_in, inner))
