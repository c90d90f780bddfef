"""Run a model's own code so that its results differ only where the plan is wrong."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_FLOATS = frozenset({torch.ones, torch.zeros, torch.empty, torch.eye, torch.linspace, torch.rand, torch.randn})
_AS_GIVEN = frozenset({torch.full, torch.tensor, torch.arange})
"""Functions that make a tensor in the default dtype: `_FLOATS` always, `_AS_GIVEN` where an argument is a float."""


class Wide(TorchFunctionMode):
    """Cast to float64 wherever the model casts to a narrower float; float64 is the default dtype too.

    Models compute softmaxes, norms and routing weights in float32 whatever their dtype. The gradient of a routing weight is
    then a sum of float32 parts, one per rank, with rounding of 1e-7, in which a wrong plan could hide. Also, the least float64,
    which masks are filled with, is minus infinity in float32, and a row of minus infinities is NaN after a softmax.
    """

    def __torch_function__(  # type: ignore[no-untyped-def]  # torch's own signature is untyped
        self, func: Callable[..., object], types: Sequence[type], args: tuple[object, ...] = (), kwargs=None
    ):
        if func is torch.Tensor.float and isinstance(args[0], torch.Tensor):
            return args[0].double()
        if func is torch._grouped_mm and isinstance(args[0], torch.Tensor) and args[0].dtype is torch.float64:
            return _grouped(args[0], *args[1:], **(kwargs or {}))
        given = {name: _wide(value) for name, value in (kwargs or {}).items()}
        if func in _FLOATS or (func in _AS_GIVEN and any(map(_has_float, (*args, *given.values())))):
            given.setdefault("dtype", torch.float64)
        return func(*map(_wide, args), **given)


@contextmanager
def copied_outputs(model: nn.Module) -> Iterator[None]:
    """Every module returns a copy of its output tensor, so that autograd allows the model to add to it in place."""
    handles = [module.register_forward_hook(_copied) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copied(_: nn.Module, __: object, output: object) -> object:
    return output.clone() if isinstance(output, torch.Tensor) else output


def _grouped(rows: torch.Tensor, matrices: Any, offs: Any, **_: object) -> torch.Tensor:
    """What torch's grouped product computes, whose kernel takes no float64: rows up to each end times the matrix of their group.

    The kernel leaves rows behind the last end as the memory was; here they are NaN, so that nobody uses them unseen.
    """
    parts, start = [], 0
    for end, matrix in zip(offs.tolist(), matrices, strict=True):
        parts.append(rows[start:end] @ matrix)
        start = max(start, end)
    return torch.cat([*parts, rows.new_full((len(rows) - start, matrices.shape[2]), float("nan"))])


def _has_float(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    return isinstance(value, float) or (isinstance(value, list | tuple) and any(map(_has_float, value)))


def _wide(value: object) -> object:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value
