"""Elementwise ops with broadcasting. They differ in the inputs in which they are linear."""

from shardproof.planner.ir.graph import GRADIENT_OF, OWN_BACKWARD
from shardproof.planner.propagation.rules.registry import rule
from shardproof.planner.propagation.semantics import Call, Einsum, Letters

SUMS = ("aten.add", "aten.sub", "aten.rsub", "aten.complex")
PRODUCTS = ("aten.mul",)
FIRST_ONLY = ("aten.div", "aten.neg", "detach", "aten._to_copy", "aten.masked_fill", "dropout")
NON_LINEAR = """polar __lshift__ __rshift__ _prelu_kernel abs acos acosh addcdiv addcmul atan atan2 asin
    bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min cos cosh elu eq erf erfc
    erfinv exp exp2 expm1 floor floor_divide fmod ge gelu gt hardshrink hardsigmoid hardswish hardtanh isinf
    isfinite isnan isneginf isposinf le leaky_relu log log10 log1p log2 log_sigmoid_forward logaddexp logical_and
    logical_not logical_or logical_xor logit lt maximum minimum mish nan_to_num ne pow reciprocal relu remainder
    round rsqrt sgn sigmoid sign silu sin sinh softplus softshrink sqrt tan tanh threshold trunc xlogy
    native_dropout bitwise_left_shift bitwise_right_shift asinh atanh copysign digamma frac heaviside hypot lgamma
    logaddexp2 special_xlog1py sinc""".split()


def broadcast(shape: tuple[int, ...], result: tuple[int, ...]) -> Letters:
    """The letters of one operand, aligned with the result at the last dim; a broadcast dim has none."""
    offset = len(result) - len(shape)
    return tuple(
        f"d{offset + position}" if size == result[offset + position] else None for position, size in enumerate(shape)
    )


def elementwise(call: Call, *linear: frozenset[int], added: frozenset[int] = frozenset()) -> Einsum:
    """An op whose operands are broadcast to the result; `linear` are the sets of inputs in which it is linear."""
    result = call.results[0]
    letters = tuple(f"d{position}" for position in range(len(result)))
    inputs = tuple(broadcast(shape, result) for shape in call.shapes)
    return Einsum(inputs, tuple(letters for _ in call.results), linear=linear, added=added)


@rule(*SUMS)
def add(call: Call) -> Einsum:
    """Linear in all operands together; the sum with a Python number is not linear."""
    tensors = frozenset(range(len(call.shapes)))
    return elementwise(call, tensors, added=tensors) if len(tensors) > 1 else elementwise(call)


@rule(*PRODUCTS)
def multiply(call: Call) -> Einsum:
    """Linear in each operand separately."""
    return elementwise(call, *(frozenset({position}) for position in range(len(call.shapes))))


@rule(*FIRST_ONLY)
def first_only(call: Call) -> Einsum:
    """Linear in the first operand; a masked fill only if it fills with zero, a quotient only if it is not rounded."""
    if call.op.target == "aten.div" and call.op.arg(2, "rounding_mode") is not None:
        return elementwise(call)
    if call.op.target.startswith("aten.masked_fill") and call.op.arg(2, "value") not in (0, 0.0, False):
        return elementwise(call)
    if call.op.target == "aten._to_copy" and not _is_float(call):
        return elementwise(call)
    return elementwise(call, frozenset({0}))


def _is_float(call: Call) -> bool:
    return "float" in call.graph.values[call.op.outputs[0]].dtype


@rule("aten.where")
def where(call: Call) -> Einsum:
    """Linear in both values together; the condition must be no partial sum."""
    return elementwise(call, frozenset({1, 2})) if len(call.shapes) == 3 else elementwise(call)


@rule("aten.lerp")
def lerp(call: Call) -> Einsum:
    """Linear in both ends together, if the weight between them is a number."""
    return elementwise(call, frozenset({0, 1})) if len(call.shapes) == 2 else elementwise(call)


@rule(GRADIENT_OF, *(f"aten.{name}" for name in NON_LINEAR))
def non_linear(call: Call) -> Einsum:
    """Linear in nothing: a partial sum must be reduced first."""
    return elementwise(call)


@rule("aten.bucketize")
def bucketize(call: Call) -> Einsum:
    """Element by element, with all of the boundaries."""
    names: Letters = tuple(f"d{position}" for position in range(len(call.shapes[0])))
    return Einsum((names, ("boundary",)), (names,), frozenset({"boundary"}))


@rule(OWN_BACKWARD)
def stands_for(call: Call) -> Einsum:
    """Each result has the placement of the value that it replaces. The propagation itself checks the inputs and gradients."""
    count = len(call.results)
    values: tuple[Letters, ...] = tuple(
        tuple(f"v{n}d{i}" for i in range(len(shape))) for n, shape in enumerate(call.shapes[:count])
    )
    beside: tuple[Letters, ...] = tuple((None,) * len(shape) for shape in call.shapes[count:])
    return Einsum((*values, *beside), values)


@rule("aten.copy")
def copy(call: Call) -> Einsum:
    """The second operand, broadcast to the first, whose own values are overwritten."""
    return elementwise(call, frozenset({0, 1}), frozenset({1}))


@rule("aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.zero", "aten.fill")
def filled_like(call: Call) -> Einsum:
    """A constant with the shape and the sharding of the first operand; never a partial sum."""
    return (
        elementwise(call, frozenset({0}))
        if call.op.target.startswith(("aten.zero", "aten.empty"))
        else elementwise(call)
    )
