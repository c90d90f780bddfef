"""Which elements a router chooses, kept from one run and taken again in another.

In low precision two nearly equal scores may change places, and then another expert computes: the results differ by as much as
the experts do, and say nothing of rounding. With the choices of the exact run, they differ by rounding alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.overrides import TorchFunctionMode

_TOPK = (torch.topk, torch.Tensor.topk)


@dataclass(frozen=True, slots=True)
class Choices:
    """The indices that every call of `topk` gave, in order."""

    made: list[torch.Tensor] = field(default_factory=list)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what is chosen here."""
        with _Keeping(self.made):
            yield

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Choose what was chosen before, where a call gives indices of the same shape; else what the call itself chooses."""
        with _Taking(iter(self.made)):
            yield


class _Keeping(TorchFunctionMode):
    def __init__(self, made: list[torch.Tensor]) -> None:
        self.made = made

    def __torch_function__(  # type: ignore[no-untyped-def]  # torch's own signature is untyped
        self, func: Callable[..., object], types: Sequence[type], args: tuple[object, ...] = (), kwargs=None
    ):
        given = func(*args, **(kwargs or {}))
        if func in _TOPK:
            assert isinstance(given, tuple)
            self.made.append(given[1].detach().clone())
        return given


class _Taking(TorchFunctionMode):
    def __init__(self, made: Iterator[torch.Tensor]) -> None:
        self.made = made

    def __torch_function__(  # type: ignore[no-untyped-def]  # torch's own signature is untyped
        self, func: Callable[..., object], types: Sequence[type], args: tuple[object, ...] = (), kwargs=None
    ):
        given = func(*args, **(kwargs or {}))
        if func not in _TOPK:
            return given
        assert isinstance(given, tuple)
        before = next(self.made, None)
        if before is None or before.shape != given[1].shape or type(given[1]) is not torch.Tensor:
            return given
        named = dict(zip(("input", "k", "dim"), args, strict=False)) | dict(kwargs or {})
        scores, dim = named["input"], named.get("dim", -1)
        assert isinstance(scores, torch.Tensor) and isinstance(dim, int)
        return torch.return_types.topk((scores.gather(dim, before), before))
