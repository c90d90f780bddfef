"""An integer that counts the layers: does a layer do more with it than hand it to the cache?"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import cache_utils

from shardproof.planner.tracing.layers.layer_kinds import LayerKind


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
