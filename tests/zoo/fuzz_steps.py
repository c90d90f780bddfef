# mypy: disable-error-code="no-any-return, no-untyped-call, no-untyped-def"
# Modeling code has Transformers' habits.
"""What a random model's feed-forward layer may do with its features, by class of code.

A step gets the feed-forward module, the features `h` `[rows, tokens, features]` and the module's input `x`
`[rows, tokens, width]`, and gives features of the same shape.
"""

import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.fuzz_states import MORE, Step

COUNTS = {"calls": 0}
"""State of this Python module, which a layer may count in."""


class Half(enum.Enum):
    """An attribute by which layers differ."""

    FIRST = 1
    SECOND = 2


class Normalised(torch.autograd.Function):
    """The identity. Its backward divides the gradient by its largest element."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0] / (1e-3 + grads[0].abs().amax(-1, keepdim=True))


class Halved(torch.autograd.Function):
    """The identity. Its backward halves the gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0] * 0.5


class Squared(torch.autograd.Function):
    """The square, with the textbook backward from a saved tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grads[0]


class Blocked(torch.autograd.Function):
    """The identity without a gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> None:
        return None


def _no_grad_mean(me: Any, h: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        mean = x.mean(-1, keepdim=True)
    return h * (1 + mean)


def _no_grad_of_part(me: Any, h: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        mean = h.mean(-1, keepdim=True)
    return h * (1 + mean)


def _switched(me: Any, h: Tensor, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    mean = x.mean(-1, keepdim=True)
    torch.set_grad_enabled(True)
    return h * (1 + mean)


@torch.no_grad()
def _frozen_gate(h: Tensor) -> Tensor:
    return h.sigmoid()


def _heads_loop(me: Any, h: Tensor, x: Tensor) -> Tensor:
    return torch.cat([part.softmax(-1) for part in h.split(4, -1)], -1)


def _loop_by_number(me: Any, h: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number in range(12):
        out[..., 4 * number : 4 * number + 4] = h[..., 4 * number : 4 * number + 4].tanh()
    return out


def _repeated(me: Any, h: Tensor, x: Tensor) -> Tensor:
    for _ in range(me.index + 2):
        h = h * 0.5 + h.tanh()
    return h


def _counted(me: Any, h: Tensor, x: Tensor) -> Tensor:
    COUNTS["calls"] = 1 if me.index == 0 else COUNTS["calls"] + 1
    return h.softmax(-1) if COUNTS["calls"] == 2 else h


def _counted_times(me: Any, h: Tensor, x: Tensor) -> Tensor:
    COUNTS["calls"] = 1 if me.index == 0 else COUNTS["calls"] + 1
    for _ in range(COUNTS["calls"]):
        h = h.tanh()
    return h


def _hook(change: Callable[[Tensor], Tensor | None]) -> Step:
    def step(me: Any, h: Tensor, x: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(change)
        return h

    return step


def _hook_on_input(me: Any, h: Tensor, x: Tensor) -> Tensor:
    y = x * 1.0
    if y.requires_grad:
        y.register_hook(lambda grad: grad - grad.mean(-1, keepdim=True))
    return h + me.up(y) * 0.1


def _logged(me: Any, h: Tensor, x: Tensor) -> Tensor:
    me.log = h.softmax(-1).mean()
    return h


def _written_view(me: Any, h: Tensor, x: Tensor) -> Tensor:
    h = h * 1.0
    h[:, 0] = 0.0
    return h


def _written_feature(me: Any, h: Tensor, x: Tensor) -> Tensor:
    h = h * 1.0
    h[..., 0] = 0.0
    return h


def _masked_write(me: Any, h: Tensor, x: Tensor) -> Tensor:
    h = h * 1.0
    h[h < 0] = 0.0
    return h


def _moved_by(number: int) -> Step:
    return lambda me, h, x: h.roll(number, -1)


STEPS: dict[str, dict[str, Step]] = {
    **MORE,
    "pointwise": {
        "silu": lambda me, h, x: F.silu(h),
        "gate": lambda me, h, x: h * me.gate(x).sigmoid(),
        "gate called directly": lambda me, h, x: h * me.gate.forward(x).sigmoid(),
        "scale": lambda me, h, x: h * 0.5,
        "bias": lambda me, h, x: h + me.bias,
        "weight": lambda me, h, x: h * me.weight,
        "clamp": lambda me, h, x: h.clamp(-1, 1),
        "where": lambda me, h, x: torch.where(h > 0, h, 0.1 * h),
        "not a number": lambda me, h, x: torch.nan_to_num(h.masked_fill(h < -1e9, float("nan"))),
        "add input projected": lambda me, h, x: h + me.up(x * 0.5),
        "up of a product": lambda me, h, x: h * me.up(x * x.mean(1, keepdim=True)),
    },
    "views": {
        "heads": lambda me, h, x: h.unflatten(-1, (-1, 4)).softmax(-1).flatten(-2),
        "heads by number": lambda me, h, x: h.view(*h.shape[:-1], 12, 4).tanh().flatten(-2),
        "heads by number, mixed": lambda me, h, x: h.view(*h.shape[:-1], 12, -1).softmax(-1).flatten(-2),
        "halves": lambda me, h, x: torch.cat([part.tanh() for part in h.chunk(2, -1)], -1),
        "halves product": lambda me, h, x: torch.cat([h.chunk(2, -1)[0] * h.chunk(2, -1)[1]] * 2, -1),
        "halves exchanged": lambda me, h, x: torch.cat(h.chunk(2, -1)[::-1], -1),
        "pairs": lambda me, h, x: (h[..., ::2] * h[..., 1::2]).repeat_interleave(2, -1),
        "rotated pairs": lambda me, h, x: torch.stack([-h[..., 1::2], h[..., ::2]], -1).flatten(-2),
        "transposed": lambda me, h, x: h.unflatten(-1, (-1, 4)).transpose(-1, -2).flatten(-2),
        "flat rows": lambda me, h, x: h.reshape(-1, h.shape[-1]).tanh().view(h.shape),
        "flat everything": lambda me, h, x: h.flatten().tanh().view(h.shape),
        "last dim first": lambda me, h, x: h.permute(2, 0, 1).relu().permute(1, 2, 0),
        "flip": lambda me, h, x: h.flip(-1),
        "flip tokens": lambda me, h, x: h.flip(1),
        "roll": _moved_by(1),
        "roll back": _moved_by(-1),
        "roll tokens": lambda me, h, x: h.roll(1, 1),
        "pad": lambda me, h, x: F.pad(h, (1, -1)),
        "pad tokens": lambda me, h, x: F.pad(h, (0, 0, 1, -1)),
        "windows": lambda me, h, x: F.pad(h, (0, 0, 1, 0)).unfold(1, 2, 1).sum(-1),
        "first feature": lambda me, h, x: h * h[..., :1],
        "first features": lambda me, h, x: torch.cat([h[..., :4].tanh(), h[..., 4:]], -1),
        "expanded": lambda me, h, x: h * x.mean(-1, keepdim=True).expand_as(h),
        "one element of each": lambda me, h, x: h * h[:, :1, :],
    },
    "reductions": {
        "softmax": lambda me, h, x: h.softmax(-1),
        "softmax of tokens": lambda me, h, x: h.softmax(1),
        "mean": lambda me, h, x: h - h.mean(-1, keepdim=True),
        "norm": lambda me, h, x: F.rms_norm(h, h.shape[-1:]),
        "group norm": lambda me, h, x: F.group_norm(h.flatten(0, 1), 12).view(h.shape),
        "largest": lambda me, h, x: h / (1 + h.abs().amax(-1, keepdim=True)),
        "sum": lambda me, h, x: h + h.sum(-1, keepdim=True),
        "mean of input": lambda me, h, x: h * (1 + x.mean(-1, keepdim=True)),
        "sum of tokens": lambda me, h, x: h + h.mean(1, keepdim=True),
        "cumsum": lambda me, h, x: h.cumsum(-1),
        "cumsum of tokens": lambda me, h, x: h.cumsum(1),
        "sorted": lambda me, h, x: h.sort(-1).values,
        "largest kept": lambda me, h, x: h * (h >= h.topk(12, -1).values[..., -1:]),
        "vector norm": lambda me, h, x: h / (1 + torch.linalg.vector_norm(h, dim=-1, keepdim=True)),
        "mean of the mean": lambda me, h, x: h + h.mean(-1, keepdim=True) - h.mean(),
        "one contraction": lambda me, h, x: h * (1 + torch.einsum("rtf,rtf->rt", h, h)[..., None]),
    },
    "loops": {
        "loop over parts": _heads_loop,
        "loop by number": _loop_by_number,
        "loop by layer": _repeated,
        "loop over tokens": lambda me, h, x: torch.stack([h[:, at].tanh() for at in range(h.shape[1])], 1),
    },
    "keywords": {
        "alpha from a size": lambda me, h, x: torch.add(h, h.tanh(), alpha=h.shape[-1] / 48),
        "alpha": lambda me, h, x: torch.add(h, h.tanh(), alpha=0.5),
        "value from a size": lambda me, h, x: torch.addcmul(h, h, h.tanh(), value=h.shape[-1] / 48),
        "eps from a size": lambda me, h, x: h * F.layer_norm(x, x.shape[-1:], eps=1.0 / h.shape[-1])[..., :1],
        "slope from a size": lambda me, h, x: F.leaky_relu(h, negative_slope=1 / h.shape[-1]),
        "limit from a size": lambda me, h, x: h.clamp(max=h.shape[-1] / 48),
        "fill from a size": lambda me, h, x: h.masked_fill(h < 0, 1.0 / h.shape[-1]),
        "threshold": lambda me, h, x: F.threshold(h, threshold=0.0, value=-0.1),
    },
    "constants": {
        "scale by width": lambda me, h, x: h * (8.0 / h.shape[-1]),
        "numpy": lambda me, h, x: h * torch.from_numpy(np.array([9.0 / h.shape[-1]])).to(h),
        "numpy, a constant": lambda me, h, x: h * torch.from_numpy(np.array([0.25])).to(h),
        "typed": lambda me, h, x: h * torch.FloatTensor([9.0 / h.shape[-1]]).to(h),
        "tensor of a size": lambda me, h, x: h * torch.tensor(9.0 / h.shape[-1]).to(h),
        "full of a size": lambda me, h, x: h * torch.full_like(h, 9.0 / h.shape[-1]),
        "counted": lambda me, h, x: h * torch.arange(h.shape[-1], device=h.device),
        "counted from numpy": lambda me, h, x: h + torch.from_numpy(np.arange(h.shape[-1])).to(h),
        "counted tokens": lambda me, h, x: h * torch.arange(1, h.shape[1] + 1, device=h.device)[:, None],
        "linspace": lambda me, h, x: h * torch.linspace(0, 1, h.shape[-1], device=h.device).to(h),
        "buffer": lambda me, h, x: h * me.table,
        "ones": lambda me, h, x: h + h.new_ones(h.shape[-1]),
        "eye": lambda me, h, x: h @ torch.eye(h.shape[-1], device=h.device).to(h),
        "triangle": lambda me, h, x: h @ torch.ones(h.shape[-1], h.shape[-1], device=h.device).tril().to(h),
        "made in the constructor": lambda me, h, x: h * me.factor,
    },
    "branches": {
        "training only": lambda me, h, x: h.softmax(-1) if me.training else h,
        "training only, pointwise": lambda me, h, x: h.tanh() if me.training else h,
        "by config": lambda me, h, x: h.softmax(-1) if me.config.num_hidden_layers > 4 else h.tanh(),
        "one token": lambda me, h, x: h.softmax(-1) if x.shape[1] == 1 else h,
        "many tokens": lambda me, h, x: h.softmax(-1) if x.shape[1] > 8 else h,
        "gradient mode": lambda me, h, x: h.softmax(-1) if torch.is_grad_enabled() else h,
        "on input": lambda me, h, x: h.softmax(-1) if x.abs().max() > 1e-3 else h,
        "on input, pointwise": lambda me, h, x: h.tanh() if x.mean() > 0 else h,
        "on a part": lambda me, h, x: h.tanh() if h.mean() > 0 else h,
        "any of a part": lambda me, h, x: h.tanh() if (h > 1).any() else h,
        "by width": lambda me, h, x: h.softmax(-1) if h.shape[-1] < 48 else h,
    },
    "no gradient": {
        "mean of input without gradient": lambda me, h, x: h * (1 + x.detach().mean(-1, keepdim=True)),
        "no_grad": _no_grad_mean,
        "no_grad of a part": _no_grad_of_part,
        "switched off": _switched,
        "decorated": lambda me, h, x: h * _frozen_gate(x.mean(-1, keepdim=True)),
        "decorated, a part": lambda me, h, x: h * _frozen_gate(h),
        "data": lambda me, h, x: h * (1 + x.data.mean(-1, keepdim=True)),
        "data of a part": lambda me, h, x: h * (1 + h.data.mean(-1, keepdim=True)),
        "straight through": lambda me, h, x: h + (h.round() - h).detach(),
        "straight through, a mean": lambda me, h, x: h + (h.mean(-1, keepdim=True) - h).detach(),
        "without gradient": lambda me, h, x: h + me.up(x).detach(),
        "logged": _logged,
    },
    "hooks": {
        "gradient halved": _hook(lambda grad: grad * 0.5),
        "gradient centred": _hook(lambda grad: grad - grad.mean(-1, keepdim=True)),
        "gradient clamped": _hook(lambda grad: grad.clamp(-1e-4, 1e-4)),
        "gradient seen": _hook(lambda grad: None),
        "gradient of the input centred": _hook_on_input,
    },
    "own backwards": {
        "halved": lambda me, h, x: Halved.apply(h),
        "normalised": lambda me, h, x: Normalised.apply(h),
        "squared": lambda me, h, x: Squared.apply(h),
        "blocked": lambda me, h, x: h + Blocked.apply(h),
        "normalised input": lambda me, h, x: h + me.up(Normalised.apply(x)),
        "halved input": lambda me, h, x: h + me.up(Halved.apply(x)),
    },
    "in place": {
        "in place": lambda me, h, x: h.mul(1.0).relu_(),
        "in place on the output": lambda me, h, x: h.mul_(0.5),
        "written tokens": _written_view,
        "written feature": _written_feature,
        "written under a mask": _masked_write,
    },
    "layers differ": {
        "second layer only": lambda me, h, x: h.softmax(-1) if me.index == 1 else h,
        "tuple": lambda me, h, x: h.softmax(-1) if me.pair[1] else h,
        "closure": lambda me, h, x: me.function(h),
        "enum": lambda me, h, x: h.softmax(-1) if me.which is Half.SECOND else h,
        "private": lambda me, h, x: h.softmax(-1) if me._private else h,
        "counter": _counted,
        "counter of repeats": _counted_times,
        "index as a factor": lambda me, h, x: h * (1 + me.index),
    },
    "numbers": {
        "number": lambda me, h, x: h / (1 + h.detach().abs().max().item()),
        "number of input": lambda me, h, x: h / (1 + x.detach().abs().max().item()),
        "list": lambda me, h, x: h * (1 + x.detach().mean((0, 1)).tolist()[0]),
        "float of a part": lambda me, h, x: h / (1 + float(h.detach().square().sum())),
        "numpy of a part": lambda me, h, x: h / (1 + h.detach().cpu().abs().numpy().sum()),
        "mask over a part": lambda me, h, x: h * (1 + h[h > 0].mean()),
        "places in the input": lambda me, h, x: h.index_add(1, torch.where(x[0, :, 0] > 0)[0], h[:, x[0, :, 0] > 0]),
    },
    "random": {
        "drawn for a part": lambda me, h, x: h * torch.bernoulli(torch.full_like(h, 0.5)),
        "dropout": lambda me, h, x: F.dropout(h, 0.1, me.training),
        "noise in training": lambda me, h, x: h + torch.randn_like(h) if me.training else h,
    },
}
"""By class of code."""

READS = {
    "gate": ("gate", "gate called directly"),
    "weight": ("weight",),
    "bias": ("bias",),
}
"""Modules and parameters of the feed-forward that only these steps read."""

BY_NAME: dict[str, Step] = {name: step for steps in STEPS.values() for name, step in steps.items()}
