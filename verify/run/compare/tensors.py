"""Relative errors: how far a tensor of the sharded model is from the single-device one."""

import math
from dataclasses import dataclass

import torch

LIMIT = 1e-8
"""Relative. In float64, rounding stays below 1e-10 and a wrong plan causes more than 1e-6; the limit lies between them."""
SMALLEST_FAULT = 1e-6
"""Relative. What differs by less may be the rounding of a model that is badly conditioned, which is measured then."""
FLOOR = 1e-6
"""The least scale of a gradient, relative to the largest gradient. A gradient that is zero in exact arithmetic (a key bias under
softmax) is rounding alone, and has no scale of its own."""


def floor(dtype: torch.dtype) -> float:
    """The least scale of a gradient for a dtype: `FLOOR` for float64, 1e4 roundings and at most a tenth for others."""
    return FLOOR if dtype is torch.float64 else min(0.1, 1e4 * torch.finfo(dtype).eps)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One compared quantity: `error` and `limit` are relative, `place` is a module or parameter path.

    `factor` is the number f with got = f * wanted, where there is one; else zero.
    """

    what: str
    error: float
    limit: float
    place: str = ""
    factor: float = 0.0

    @property
    def right(self) -> bool:
        """Whether the error is within the limit; a NaN is not."""
        return self.error <= self.limit


def relative_error(got: torch.Tensor, want: torch.Tensor, *, floor: float = 0.0) -> float:
    """Largest difference over the largest wanted magnitude (at least `floor`).

    Infinite where the shapes differ or a value is not finite.
    """
    if got.shape != want.shape:
        return math.inf
    if want.numel() == 0:
        return 0.0
    got, want = got.detach().to("cpu", torch.float64), want.detach().to("cpu", torch.float64)
    scale = max(float(want.abs().max()), floor)
    error = float((got - want).abs().max()) / (scale or 1.0)
    return error if math.isfinite(error) else math.inf


def repetition_limit(dtype: torch.dtype) -> float:
    """How far, relatively, the same sum may be from itself when it is computed again: some roundings of the dtype."""
    return max(LIMIT, 16 * torch.finfo(dtype).eps)


def factor_between(got: torch.Tensor, want: torch.Tensor, *, limit: float = LIMIT) -> float:
    """The number f with got = f * want within a relative limit; zero where there is none."""
    if got.shape != want.shape or not want.numel():
        return 0.0
    got, want = got.detach().to("cpu", torch.float64), want.detach().to("cpu", torch.float64)
    factor = float((got * want).sum() / (want * want).sum())
    return factor if relative_error(got, factor * want) <= limit else 0.0
