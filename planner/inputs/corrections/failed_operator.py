"""Which operator of a forward failed, on which sizes, and from which arguments of the forward each of its operands was made."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from shardproof.planner.inputs.meta_types import meta_type


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that an operator was given: its shape, and the arguments of the forward that it depends on."""

    shape: tuple[int, ...]
    arguments: frozenset[str]


@dataclass(frozen=True, slots=True)
class FailedOperator:
    """An operator that raised: its name, and its tensors in order."""

    name: str
    operands: tuple[Operand, ...]


class Witness(TorchFunctionMode):
    """Follows the arguments of a forward through its operators, until one raises; `failed` is that one.

    All tensors of the forward are kept alive meanwhile, so it is used on the meta device and on small models.
    """

    def __init__(self, given: Mapping[str, object]) -> None:
        super().__init__()
        self.failed: FailedOperator | None = None
        self.count = 0
        """How many operators came to their end: how far a forward came."""
        self._error: BaseException | None = None
        self._made_of: dict[int, frozenset[str]] = {}
        self._kept: list[Tensor] = []
        for name, value in given.items():
            if isinstance(value, Tensor):
                self._note(value, frozenset({name}))

    def raised(self, error: BaseException) -> bool:
        """Whether this exception came from the operator that failed."""
        return self._error is error

    def made_of(self, value: object) -> frozenset[str]:
        """The arguments that a tensor of the forward was made of; none for what is no tensor."""
        return self._made_of.get(id(value), frozenset()) if isinstance(value, Tensor) else frozenset()

    def _note(self, tensor: Tensor, names: frozenset[str]) -> None:
        self._made_of[id(tensor)] = names
        self._kept.append(tensor)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch._assert:  # the model's own assertion, and no operator
            return func(*args, **kwargs)
        tensors = [one for one in _flat((*args, *kwargs.values())) if isinstance(one, Tensor)]
        known = [found for one in tensors if (found := self._made_of.get(id(one)))]
        names = known[0] if len(known) == 1 else frozenset[str]().union(*known)
        try:
            _refuse_unlikely(func, tensors)
            typed = meta_type(args, kwargs) if func is Tensor.type else NotImplemented
            made = func(*args, **kwargs) if typed is NotImplemented else typed
        except Exception as error:
            if error is not self._error:
                self._error = error
                operands = tuple(Operand(tuple(one.shape), self.made_of(one)) for one in tensors)
                self.failed = FailedOperator(getattr(func, "__name__", str(func)), operands)
            raise
        self.count += 1
        if names:
            for one in _flat((made,)):
                if isinstance(one, Tensor):
                    self._note(one, names if id(one) not in self._made_of else names | self._made_of[id(one)])
        return made


_BATCHED = {F.conv1d: 3, F.conv2d: 4, F.conv3d: 5}


def _refuse_unlikely(func: Callable[..., Any], tensors: Sequence[Tensor]) -> None:
    """Raise where torch would go on: a lookup by numbers, which nobody checks on meta, and a batch that passes for one image."""
    if func is F.embedding and tensors and tensors[0].is_floating_point():
        raise TypeError("a table is looked up by indices, which are Long or Int")
    if func in _BATCHED and tensors and tensors[0].dim() < _BATCHED[func]:
        raise TypeError(f"{_BATCHED[func]} dims of a batch are expected, got {tensors[0].dim()}")


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    """Values, and those in lists and tuples of them."""
    for one in values:
        if isinstance(one, list | tuple):
            yield from _flat(one)
        else:
            yield one
