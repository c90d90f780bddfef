# mypy: disable-error-code="no-any-return, no-untyped-call, no-untyped-def"
# Modeling code has Transformers' habits.
"""More steps of a random model's feed-forward: what code remembers, guards against, draws past torch, or groups and ungroups."""

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Step = Callable[[Any, Tensor, Tensor], Tensor]

TABLES: dict[Any, Tensor] = {}
"""A memory of this Python module, which every layer reads and fills."""


@lru_cache
def _line(size: int) -> Tensor:
    return torch.linspace(0, 1, size, dtype=torch.float64)


def _table(size: int, device: torch.device, kind: str) -> Tensor:
    if (kind, size) not in TABLES:
        TABLES[kind, size] = torch.arange(1, 1 + size, dtype=torch.float64, device=device)
    return TABLES[kind, size]


def _counted_calls(me: Any, h: Tensor, x: Tensor) -> Tensor:
    me.calls = getattr(me, "calls", 0) + 1
    return h * (1 + 0.1 * min(me.calls, 2))


def _seeded(size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(0))


def _written_where(me: Any, h: Tensor, x: Tensor) -> Tensor:
    made, places = h.clone(), (h > 0).nonzero(as_tuple=True)
    made[places] = h[places].tanh()
    return made


def _infinite_mask(me: Any, h: Tensor, x: Tensor) -> Tensor:
    mask = torch.full((h.shape[1],) * 2, float("-inf"), dtype=h.dtype, device=h.device).triu(1) + 0 * x.sum()
    return h.softmax(-1) if torch.isinf(mask).any() else h


def _reentrant(me: Any, h: Tensor, x: Tensor) -> Tensor:
    return checkpoint(torch.tanh, h, use_reentrant=True) if h.requires_grad else h.tanh()


MORE: dict[str, dict[str, Step]] = {
    "memories": {
        "table by width": lambda me, h, x: h * _table(h.shape[-1], h.device, "width").to(h),
        "table by tokens": lambda me, h, x: h * _table(h.shape[1], h.device, "tokens").to(h)[:, None],
        "cached by width": lambda me, h, x: h * _line(h.shape[-1]).to(h),
        "cached by tokens": lambda me, h, x: h * _line(h.shape[1]).to(h)[:, None],
        "number of calls": _counted_calls,
    },
    "guards": {
        "not a number in the input": lambda me, h, x: h.softmax(-1) if torch.isnan(x).any() else h,
        "not a number in a part": lambda me, h, x: h if torch.isfinite(h).all() else h.softmax(-1),
        "infinity in a mask": _infinite_mask,
        "all finite": lambda me, h, x: torch.where(torch.isfinite(h).all(-1, keepdim=True), h, torch.zeros_like(h)),
        "above the mean": lambda me, h, x: torch.where(h.mean() > 0, h.tanh(), h),
    },
    "sizes of searches": {
        "as many as are positive": lambda me, h, x: h * (1 + 0.1 * (h[0, 0] > 0).nonzero().shape[0]),
        "as many as a mask takes": lambda me, h, x: h * (1 + 0.01 * len(h[h > 0])),
        "as many in the input": lambda me, h, x: h * (1 + 0.01 * x[x > 0].numel()),
        "as many signs": lambda me, h, x: h * (1 + 0.1 * torch.unique(h).numel()),
    },
    "drawn past torch": {
        "by Python": lambda me, h, x: h * 0.5 if me.training and random.random() < 0.5 else h,
        "by numpy": lambda me, h, x: h * float(np.random.rand()) if me.training else h,
        "from a seed": lambda me, h, x: h * _seeded(1).to(h),
        "from a seed, by width": lambda me, h, x: h * _seeded(h.shape[-1]).to(h),
    },
    "groups": {
        "gated halves": lambda me, h, x: F.glu(torch.cat([h, h], -1), -1),
        "gated, once": lambda me, h, x: torch.cat([F.glu(h, -1)] * 2, -1),
        "side by side": lambda me, h, x: h.unfold(-1, 4, 4).softmax(-1).flatten(-2),
        "shuffled and back": lambda me, h, x: h.view(*h.shape[:-1], 4, -1).transpose(-1, -2).tanh().mT.reshape(h.shape),
        "shuffled": lambda me, h, x: h.view(*h.shape[:-1], 4, -1).transpose(-1, -2).reshape(h.shape),
        "parts by number": lambda me, h, x: torch.cat([h[..., 4 * n : 4 * n + 4].softmax(-1) for n in range(12)], -1),
        "halves, each whole": lambda me, h, x: torch.cat([one.softmax(-1) for one in h.chunk(2, -1)], -1),
        "written where positive": _written_where,
        "checkpointed": _reentrant,
    },
}
"""By class of code."""
