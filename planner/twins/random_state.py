"""Random weights in which no tensor has its neutral value."""

import math

import torch
from torch import nn

_NEUTRAL = 1e3
"""A vector with a value of at least this magnitude, or NaN, is memory that its constructor did not initialise."""


def random_state(model: nn.Module, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """A float64 state dict for a model that was built on the CPU, in which no tensor has its neutral value.

    Matrices are normally distributed and scaled to keep activations near 1. Vectors (norm weights, biases, sinks, per-head
    constants) vary around the value that the model initialises them with: a zero bias would hide a bias added once per
    rank, and a unit norm weight a missing all-reduce of its gradient. Buffers that are positive stay so: code takes their root.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    drawn: dict[int, torch.Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in drawn:
            made = _drawn(value.detach(), generator)
            if not isinstance(value, nn.Parameter) and value.ndim == 1 and bool((value > 0).all()):
                made = made.abs() + 0.1 * value if value.is_floating_point() else made
            drawn[id(value)] = made.abs() + 0.1 if name.endswith("running_var") else made  # a variance is positive
        state[name] = drawn[id(value)]
    return state


def _drawn(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not value.is_floating_point():
        return value.clone()
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    if value.ndim >= 2:
        return noise / math.sqrt(value.shape[-1])
    made = value.double()
    return torch.where(made.abs() < _NEUTRAL, made, 1.0) + 0.3 * noise
