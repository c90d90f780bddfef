"""Two numbers that should be one: how far a tensor of the sharded model is from the single-device one."""

import math
from dataclasses import dataclass

import torch

LIMIT = 1e-8
"""In float64 rounding stays below 1e-10 and a wrong plan above 1e-6, relative; the limit stands between them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One compared quantity: `error` and `limit` are relative, `place` is a module or parameter path."""

    what: str
    error: float
    limit: float
    place: str = ""

    @property
    def right(self) -> bool:
        """Whether the error is within the limit; a NaN is not."""
        return self.error <= self.limit


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference over the largest wanted magnitude; infinite where the shapes differ or a value is not finite."""
    if got.shape != want.shape:
        return math.inf
    if want.numel() == 0:
        return 0.0
    got, want = got.detach().to("cpu", torch.float64), want.detach().to("cpu", torch.float64)
    scale = float(want.abs().max())
    error = float((got - want).abs().max()) / (scale or 1.0)
    return error if math.isfinite(error) else math.inf
