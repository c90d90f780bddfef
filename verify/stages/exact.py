"""Ways to run a model's own code so that only the plan can make a difference."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_FLOATS = frozenset({torch.ones, torch.zeros, torch.empty, torch.eye, torch.linspace, torch.rand, torch.randn})
_AS_GIVEN = frozenset({torch.full, torch.tensor, torch.arange})
"""What makes a tensor from no other, in the default dtype: always, or where it is given a float."""


class Wide(TorchFunctionMode):
    """Every cast to a narrower float is a cast to float64, which is the default dtype too.

    Models take softmaxes, norms and routing weights in float32 whatever their dtype, and the gradient of a routing
    weight
    is then a sum of float32 parts, one per rank: rounding of 1e-7, which a wrong plan may not hide behind. In float32 a
    mask of the least float64 is minus infinity besides, and a row with nothing but that is NaN.
    """

    def __torch_function__(  # type: ignore[no-untyped-def]  # torch's own signature is untyped
        self, func: Callable[..., object], types: Sequence[type], args: tuple[object, ...] = (), kwargs=None
    ):
        if func is torch.Tensor.float and isinstance(args[0], torch.Tensor):
            return args[0].double()
        given = {name: _wide(value) for name, value in (kwargs or {}).items()}
        if func in _FLOATS or (func in _AS_GIVEN and any(map(_has_float, (*args, *given.values())))):
            given.setdefault("dtype", torch.float64)
        return func(*map(_wide, args), **given)


@contextmanager
def copied_outputs(model: nn.Module) -> Iterator[None]:
    """Every module gives a copy of its tensor, which may be added to in place, as a statement or not."""
    handles = [module.register_forward_hook(_copied) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copied(_: nn.Module, __: object, output: object) -> object:
    return output.clone() if isinstance(output, torch.Tensor) else output


def _has_float(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    return isinstance(value, float) or (isinstance(value, list | tuple) and any(map(_has_float, value)))


def _wide(value: object) -> object:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value
