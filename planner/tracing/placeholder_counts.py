"""How many things a tensor counts: what modeling code reads off such counts decides how much work each expert gets.

On the meta device nobody knows the counts, but often their sum: as many tokens are given to experts as there are indices. Where
code asks for the numbers, they are answered in equal parts of it, so that every expert runs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

KEEP = frozenset(
    {
        *(Tensor.sum, torch.sum, Tensor.view, Tensor.reshape, Tensor.flatten, Tensor.permute, Tensor.transpose),
        *(Tensor.to, Tensor.long, Tensor.int, Tensor.type, Tensor.detach, Tensor.clone, Tensor.contiguous),
    }
)
"""Functions whose result counts the same things."""
MARKS = frozenset({Tensor.scatter_, Tensor.scatter, torch.scatter})
"""Functions that put one number for every index: where that is 1, they count."""


def counted(func: Callable[..., Any], args: tuple[Any, ...], result: Any) -> Any:
    """The result of a call, remembered with the number of things that it counts, if it counts any."""
    if not isinstance(result, Tensor):
        return result
    if func is F.one_hot:
        total = args[0].numel()
    elif func in MARKS and len(args) > 3 and isinstance(args[2], Tensor) and (args[3] == 1) is True:
        total = args[2].numel()
    else:
        total = getattr(args[0], "_counts", None) if func in KEEP and args else None
    if total is not None:
        result._counts = total  # type: ignore[attr-defined]  # a mark of our own
    return result


def parts_of(tensor: Tensor) -> list[int] | None:
    """The numbers of a row of counts, in equal parts; None of a tensor that is no such row."""
    total = getattr(tensor, "_counts", None)
    if total is None or tensor.dim() != 1 or not len(tensor):
        return None
    least = total // len(tensor)
    return [least] * (len(tensor) - 1) + [total - least * (len(tensor) - 1)]
