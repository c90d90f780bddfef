"""Products: linear, matmul and related ops, einsum, convolution."""

from string import ascii_letters

from shardproof.planner.ir.graph import Ref
from shardproof.planner.propagation.rules.registry import rule
from shardproof.planner.propagation.semantics import Call, Einsum, Letters


def _lead(count: int, prefix: str = "b") -> Letters:
    return tuple(f"{prefix}{position}" for position in range(count))


def _product(inputs: tuple[Letters, ...], output: Letters, *, bias: Letters | None = None) -> Einsum:
    """The product of `inputs`, summed over letters missing in the output, plus the bias, if any."""
    if bias is None:
        return Einsum(inputs, (output,), linear=tuple(frozenset({i}) for i in range(len(inputs))))
    last = len(inputs)
    linear = tuple(frozenset({i, last}) for i in range(last))
    return Einsum((*inputs, bias), (output,), linear=linear, added=frozenset({last}))


@rule("linear")
def linear(call: Call) -> Einsum:
    """`y[..., o] = x[..., k] w[o, k] + b[o]`."""
    lead = _lead(len(call.shapes[0]) - 1)
    weight: Letters = ("o", "k") if len(call.shapes[1]) == 2 else ("k",)
    output: Letters = (*lead, "o") if len(call.shapes[1]) == 2 else lead
    return _product(((*lead, "k"), weight), output, bias=("o",) if len(call.shapes) > 2 else None)


@rule("matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot")
def matmul(call: Call) -> Einsum:
    """`y[..., i, j] = x[..., i, k] w[..., k, j]`, leading dims broadcast, one-dimensional operands as in torch."""
    left, right = call.shapes[0], call.shapes[1]
    lead = max(len(left), len(right)) - 2
    row: Letters = ("i", "k") if len(left) > 1 else ("k",)
    column: Letters = ("k", "j") if len(right) > 1 else ("k",)

    def full(shape: tuple[int, ...], own: Letters, other: tuple[int, ...]) -> Letters:
        batch = max(len(shape) - 2, 0)
        names = [f"b{lead - batch + position}" for position in range(batch)]
        return (*(n if _pairs(shape, other, p - batch - 2) else None for p, n in enumerate(names)), *own)

    output = (*_lead(max(lead, 0)), *row[:-1], *column[1:])
    return _product((full(left, row, right), full(right, column, left)), output)


def _pairs(shape: tuple[int, ...], other: tuple[int, ...], position: int) -> bool:
    """Whether the batch dim at this (negative) position is not broadcast against the other operand."""
    return shape[position] != 1 or len(other) < -position or other[position] == 1


@rule("aten.addmm", "aten.baddbmm")
def addmm(call: Call) -> Einsum:
    """`y[..., i, j] = x[..., i, k] w[..., k, j] + b`, with the bias given first."""
    lead = _lead(len(call.shapes[1]) - 2)
    output = (*lead, "i", "j")
    bias = _broadcast(call.shapes[0], output, call.results[0])
    return Einsum(
        (bias, (*lead, "i", "k"), (*lead, "k", "j")),
        (output,),
        linear=(frozenset({0, 1}), frozenset({0, 2})),
        added=frozenset({0}),
    )


def _broadcast(shape: tuple[int, ...], output: Letters, result: tuple[int, ...]) -> Letters:
    offset = len(result) - len(shape)
    return tuple(output[offset + i] if size == result[offset + i] else None for i, size in enumerate(shape))


@rule("einsum")
def einsum(call: Call) -> Einsum | None:
    """The op's own equation is the rule."""
    equation = call.op.args[0]
    if not isinstance(equation, str):
        return None
    terms, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = sorted(c for c in terms if c in ascii_letters and terms.count(c) == 1)
        result = ("..." if "..." in terms else "") + "".join(letters)
    inputs = tuple(_term(term, len(shape)) for term, shape in zip(terms.split(","), call.shapes, strict=True))
    return _product(inputs, _term(result, len(call.results[0])))


def _term(term: str, ndim: int) -> Letters:
    if "..." not in term:
        return tuple(term)
    before, _, after = term.partition("...")
    hidden = ndim - len(before) - len(after)
    return (*before, *(f"e{position - hidden}" for position in range(hidden)), *after)


@rule("aten.linalg_solve_triangular")
def solve_triangular(call: Call) -> Einsum:
    """`a[..., n, n] x[..., n, k] = b[..., n, k]` (or `x a = b`): rows depend on earlier rows, columns are independent."""
    a, b = call.shapes[0], call.shapes[1]
    lead = _lead(len(call.results[0]) - 2)
    left = call.op.arg(3, "left", True) is not False
    inner: Letters = ("n", "k") if left else ("k", "n")

    def full(shape: tuple[int, ...], other: tuple[int, ...], own: Letters) -> Letters:
        names = lead[len(lead) - (len(shape) - 2) :] if len(shape) > 2 else ()
        return (*(n if _pairs(shape, other, p - len(shape)) else None for p, n in enumerate(names)), *own)

    why = "a triangular solve runs along this dim"
    return Einsum(
        (full(a, b, ("m", "n")), full(b, a, inner)),
        ((*lead, *inner),),
        frozenset({"m", "n"}),
        (frozenset({1}),),
        why_locked=why,
    )


@rule("aten.convolution")
def convolution(call: Call) -> Einsum | None:
    """`x[b, c, ...] * w[o, c / groups, ...]`: with one group, `c` is summed over; in a depthwise convolution `c` and `o`
    are one dim.
    """
    shape, weight = call.shapes[0], call.shapes[1]
    groups = call.number(8, "groups", 1)
    space = tuple(f"x{i}" for i in range(len(shape) - 2))
    kernel = tuple(f"w{i}" for i in range(len(weight) - 2))
    out = tuple(f"y{i}" for i in range(len(shape) - 2))
    locked = frozenset({*space, *kernel, *out})
    has_bias = isinstance(call.op.arg(2, "bias"), Ref)
    if groups == 1:
        inputs: tuple[Letters, ...] = (("b", "c", *space), ("o", "c", *kernel))
        channel = "o"
    elif groups == shape[1] == weight[0]:
        inputs = (("b", "c", *space), ("c", None, *kernel))
        channel = "c"
    else:
        return None
    bias: tuple[Letters, ...] = ((channel,),) if has_bias else ()
    added = frozenset({2}) if has_bias else frozenset()
    return Einsum(
        (*inputs, *bias), (("b", channel, *out),), locked, (frozenset({0}) | added, frozenset({1}) | added), added
    )


@rule("aten._cdist_forward")
def distances(call: Call) -> Einsum:
    """Between each row of `x[..., p, m]` and each row of `y[..., r, m]`."""
    lead = _lead(len(call.results[0]) - 2)
    inputs: tuple[Letters, ...] = tuple(
        (*(lead[len(lead) - (len(shape) - 2) :] if len(shape) > 2 else ()), row, "m")
        for shape, row in zip(call.shapes, ("p", "r"), strict=True)
    )
    return Einsum(inputs, ((*lead, "p", "r"),), frozenset({"m"}), why_locked="a distance needs all coordinates")


@rule("aten._grouped_mm")
def grouped_mm(call: Call) -> Einsum | None:
    """Rows of `x[t, k]` times the matrix of their expert, `w[e, k, j]`; the offsets must be whole."""
    if len(call.shapes[0]) != 2 or len(call.shapes[1]) != 3:
        return None
    rest = tuple((None,) for _ in call.shapes[2:])
    return Einsum(
        (("t", "k"), ("e", "k", "j"), *rest), (("t", "j"),), frozenset({"t", "e"}), (frozenset({0}), frozenset({1}))
    )
