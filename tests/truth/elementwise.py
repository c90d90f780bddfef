"""Programs of the elementwise ops. Where an op is the identity on integers, or has no value, it is fed something else."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.truth.harness import Case

aten = torch.ops.aten


def _positive(a: Tensor) -> Tensor:
    return a.abs() + 1


def _unit(a: Tensor) -> Tensor:
    """Between -1 and 1."""
    return a / 64


def _odd(a: Tensor) -> Tensor:
    """With infinities and what is no number."""
    return a / a.relu()


ONE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs, "acos": lambda a: _unit(a).acos(), "acosh": lambda a: _positive(a).acosh(),
    "asin": lambda a: _unit(a).asin(), "atan": torch.atan, "bitwise_not": lambda a: a.long().bitwise_not(),
    "ceil": lambda a: (a / 3).ceil(), "celu": F.celu, "clamp": lambda a: a.clamp(-1, 1),
    "clamp_max": lambda a: aten.clamp_max(a, 1), "clamp_min": lambda a: aten.clamp_min(a, -1), "cos": torch.cos,
    "cosh": torch.cosh, "elu": F.elu, "erf": torch.erf, "erfc": torch.erfc, "erfinv": lambda a: _unit(a).erfinv(),
    "asinh": torch.asinh, "atanh": lambda a: _unit(a).atanh(), "digamma": lambda a: _positive(a).digamma(),
    "frac": lambda a: (a / 3).frac(), "lgamma": lambda a: (_positive(a) + 1).lgamma(), "sinc": lambda a: (a / 3).sinc(),
    "exp": torch.exp, "exp2": torch.exp2, "expm1": torch.expm1, "floor": lambda a: (a / 3).floor(), "gelu": F.gelu,
    "hardshrink": lambda a: F.hardshrink(a, 2.0), "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "hardtanh": F.hardtanh,
    "isinf": lambda a: _odd(a).isinf(), "isnan": lambda a: _odd(a).isnan(),
    "isfinite": lambda a: _odd(a).isfinite(), "isneginf": lambda a: _odd(a).isneginf(),
    "isposinf": lambda a: (-_odd(a)).isposinf(), "leaky_relu": F.leaky_relu, "log": lambda a: _positive(a).log(),
    "log10": lambda a: _positive(a).log10(), "log1p": lambda a: _positive(a).log1p(),
    "log2": lambda a: _positive(a).log2(), "log_sigmoid": F.logsigmoid, "logical_not": torch.logical_not,
    "logit": lambda a: (_unit(a) + 0.5).logit(), "mish": F.mish, "nan_to_num": lambda a: _odd(a).nan_to_num(),
    "detach": torch.Tensor.detach,
    "neg": torch.neg, "pow": lambda a: a**2, "reciprocal": lambda a: _positive(a).reciprocal(), "relu": F.relu,
    "remainder": lambda a: a.remainder(3), "round": lambda a: (a / 3).round(),
    "rsqrt": lambda a: _positive(a).rsqrt(), "sgn": torch.sgn, "sigmoid": torch.sigmoid, "sign": torch.sign,
    "silu": F.silu, "sin": torch.sin, "sinh": torch.sinh, "softplus": F.softplus, "softshrink": F.softshrink,
    "sqrt": lambda a: a.abs().sqrt(), "tan": torch.tan, "tanh": torch.tanh,
    "threshold": lambda a: F.threshold(a, 0.5, 7.0), "trunc": lambda a: (a / 3).trunc(),
    "fmod number": lambda a: a.fmod(3), "to float": lambda a: a.float(), "to integer": lambda a: (a / 3).long(),
    "div rounded": lambda a: torch.div(a, 2, rounding_mode="floor"),
    "add number": lambda a: a + 1.5, "rsub": lambda a: 3 - a,
    "masked_fill zero": lambda a: a.masked_fill(torch.ones_like(a, dtype=torch.bool), 0.0),
    "masked_fill": lambda a: a.masked_fill(a > 1, 7.0),
}  # fmt: skip

TWO: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": lambda a, b: a / (b.abs() + 1),
    "atan2": torch.atan2, "bitwise_and": lambda a, b: a.long() & b.long(), "bitwise_or": lambda a, b: a.long() | b.long(),
    "bitwise_xor": lambda a, b: a.long() ^ b.long(), "lshift": lambda a, b: a.long() << b.abs().long(),
    "rshift": lambda a, b: (a * 64).long() >> b.abs().long(),
    "bitwise_left_shift": lambda a, b: torch.bitwise_left_shift(a.long(), b.abs().long()),
    "bitwise_right_shift": lambda a, b: torch.bitwise_right_shift((a * 64).long(), b.abs().long()), "eq": torch.eq,
    "floor_divide": lambda a, b: a.floor_divide(_positive(b)), "fmod": lambda a, b: a.fmod(_positive(b)), "ge": torch.ge,
    "gt": torch.gt, "le": torch.le, "lerp": lambda a, b: a.lerp(b, 0.25), "logaddexp": torch.logaddexp,
    "logical_and": lambda a, b: torch.logical_and(a > 0, b > 1),
    "logical_or": lambda a, b: torch.logical_or(a > 0, b > 1),
    "logical_xor": lambda a, b: torch.logical_xor(a > 0, b > 1), "lt": torch.lt,
    "maximum": torch.maximum, "minimum": torch.minimum, "max of two": torch.max, "ne": torch.ne,
    "copysign": lambda a, b: torch.copysign(a.abs(), b), "heaviside": torch.heaviside, "hypot": torch.hypot,
    "logaddexp2": torch.logaddexp2, "xlog1py": lambda a, b: torch.special.xlog1py(a, _positive(b)),
    "complex": lambda a, b: torch.view_as_real(torch.complex(a, b)),
    "polar": lambda a, b: torch.view_as_real(torch.polar(a.abs(), b)),
    "prelu": lambda a, b: aten._prelu_kernel(a, b), "xlogy": lambda a, b: torch.xlogy(a, _positive(b)),
    "where": lambda a, b: torch.where(torch.tensor(True), a, b), "where chosen": lambda a, b: torch.where(a > b, a, b),
    "addcmul": lambda a, b: a.addcmul(b, b), "addcdiv": lambda a, b: a.addcdiv(b, _positive(b)),
}  # fmt: skip

ELEMENTWISE = (
    *(Case(name, function, ((4, 12),)) for name, function in ONE.items()),
    *(Case(name, function, ((4, 6), (4, 6))) for name, function in TWO.items()),
    Case("add broadcast", lambda a, b: a + b, ((2, 4, 6), (6,))),
    Case("sub broadcast", lambda a, b: a - b, ((4, 6), (1, 6))),
)
