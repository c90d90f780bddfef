"""Ops that only rearrange elements: reshapes, permutations, broadcasts, slices, concatenations."""

from shardproof.planner.ir.graph import Arg
from shardproof.planner.propagation.rules.registry import rule
from shardproof.planner.propagation.semantics import (
    Call,
    Concat,
    Einsum,
    Fresh,
    Letters,
    Narrow,
    Reshape,
    Same,
    Semantics,
    Write,
)

_ONE = (frozenset({0}),)


def _names(count: int) -> Letters:
    return tuple(f"d{position}" for position in range(count))


@rule("aten.view")
def reshape(call: Call) -> Semantics:
    """A row-major reshape: only the grouping of dims changes."""
    return Reshape()


@rule("aten.permute")
def permute(call: Call) -> Semantics:
    """The dims in another order."""
    names = _names(len(call.shapes[0]))
    return Einsum((names,), (tuple(names[dim] for dim in call.numbers(1, "dims")),), linear=_ONE)


@rule("aten.transpose", "aten.t")
def transpose(call: Call) -> Semantics:
    """Two dims exchanged."""
    names = list(_names(len(call.shapes[0])))
    if call.op.target == "aten.t":
        return Einsum((tuple(names),), (tuple(reversed(names)),), linear=_ONE)
    one, other = call.number(1, "dim0", 0), call.number(2, "dim1", 1)
    swapped = list(names)
    swapped[one], swapped[other] = names[other], names[one]
    return Einsum((tuple(names),), (tuple(swapped),), linear=_ONE)


@rule("aten.view_as_complex")
def pairs_as_complex(call: Call) -> Semantics:
    """The last dim, of size two, becomes the real and imaginary part of a complex number."""
    names = _names(len(call.shapes[0]))
    return Einsum((names,), (names[:-1],), frozenset({names[-1] or ""}), _ONE, why_locked="a pair is one number")


@rule("aten.view_as_real")
def complex_as_pairs(call: Call) -> Semantics:
    """Complex numbers become a last dim of size two."""
    names = _names(len(call.shapes[0]))
    return Einsum((names,), ((*names, None),), linear=_ONE)


@rule("aten.unsqueeze")
def unsqueeze(call: Call) -> Semantics:
    """A new dim of size one."""
    names = _names(len(call.shapes[0]))
    dim = call.number(1, "dim", 0) % (len(names) + 1)
    return Einsum((names,), ((*names[:dim], None, *names[dim:]),), linear=_ONE)


@rule("aten.squeeze")
def squeeze(call: Call) -> Semantics:
    """Dims of size one are removed."""
    shape = call.shapes[0]
    given = call.numbers(1, "dim")
    dims = {dim % len(shape) for dim in given} if given else set(range(len(shape)))
    names = _names(len(shape))
    return Einsum((names,), (tuple(n for i, n in enumerate(names) if not (i in dims and shape[i] == 1)),), linear=_ONE)


@rule("aten.expand")
def expand(call: Call) -> Semantics:
    """Dims of size one are repeated; all elements along a repeated dim are equal."""
    shape, result = call.shapes[0], call.results[0]
    offset = len(result) - len(shape)
    names = _names(len(result))
    given = tuple(names[offset + i] if size == result[offset + i] else None for i, size in enumerate(shape))
    return Einsum((given,), (names,), linear=_ONE)


@rule("aten.slice")
def narrow(call: Call) -> Semantics:
    """A contiguous part of one dim; with a step the dim is locked."""
    dim, start, stop, step = (call.op.arg(i, name) for i, name in enumerate(("dim", "start", "end", "step"), start=1))
    shape = call.shapes[0]
    axis = (dim if isinstance(dim, int) else 0) % len(shape)
    size = shape[axis]
    if step not in (None, 1):
        return _lock(call, axis, "a strided slice takes every n-th element")
    first = min(max(_offset(start, 0, size), 0), size)
    last = min(max(_offset(stop, size, size), first), size)
    return Narrow(axis, (first,), (last - first,))


def _offset(value: Arg, default: int, size: int) -> int:
    if not isinstance(value, int):
        return default
    return value + size if value < 0 else value


def _lock(call: Call, dim: int, why: str) -> Einsum:
    names = _names(len(call.shapes[0]))
    kept = tuple(None if position == dim else name for position, name in enumerate(names))
    return Einsum((names,), tuple(kept for _ in call.results), frozenset({f"d{dim}"}), _ONE, why_locked=why)


@rule("aten.split", "aten.split_with_sizes", "aten.unsafe_split")
def split(call: Call) -> Semantics:
    """Consecutive parts of one dim."""
    shape = call.shapes[0]
    dim = call.number(2, "dim", 0) % len(shape)
    lengths = tuple(result[dim] for result in call.results)
    starts = tuple(sum(lengths[:position]) for position in range(len(lengths)))
    return Narrow(dim, starts, lengths)


@rule("aten.select", "aten.unbind")
def select(call: Call) -> Semantics:
    """One index of a dim; the result does not have that dim."""
    names = _names(len(call.shapes[0]))
    dim = call.number(1, "dim", 0) % len(names)
    kept = (*names[:dim], *names[dim + 1 :])
    why = "an index by position means another element on every rank"
    return Einsum((names,), tuple(kept for _ in call.results), frozenset({f"d{dim}"}), _ONE, why_locked=why)


@rule("aten.cat")
def concat(call: Call) -> Semantics:
    """The inputs concatenated along a dim."""
    return Concat(call.number(1, "dim", 0) % len(call.results[0]))


@rule("aten.stack")
def stack(call: Call) -> Semantics:
    """The inputs stacked along a new dim."""
    names = _names(len(call.shapes[0]))
    dim = call.number(1, "dim", 0) % (len(names) + 1)
    everything = frozenset(range(len(call.shapes)))
    return Einsum(tuple(names for _ in call.shapes), ((*names[:dim], None, *names[dim:]),), linear=(everything,))


@rule("aten.repeat")
def repeat(call: Call) -> Semantics:
    """Tiling: tiled dims are locked."""
    shape, times = call.shapes[0], call.numbers(1, "repeats")
    offset = len(times) - len(shape)
    names = _names(len(shape))
    kept = tuple(None if i < offset or times[i] != 1 else names[i - offset] for i in range(len(times)))
    tiled = {i - offset for i, n in enumerate(times) if i >= offset and n != 1 and shape[i - offset] != 1}
    locked = frozenset(names[i] or "" for i in tiled)
    return Einsum(
        (names,), (kept,), locked, _ONE, why_locked="tiling a part repeats it in another order than the whole"
    )


@rule("aten.constant_pad_nd", "aten.unfold", "aten.tril", "aten.triu")
def border(call: Call) -> Semantics:
    """Dims whose elements depend on their position in the whole dim are locked; the other dims may be sharded."""
    shape, result = call.shapes[0], call.results[0]
    names = _names(len(shape))
    changed = {i for i, (a, b) in enumerate(zip(shape, result, strict=False)) if a != b}
    if call.op.target == "aten.constant_pad_nd":  # padding may be added on one side and removed on the other
        pads = call.numbers(1, "pad")
        changed |= {len(shape) - 1 - i // 2 for i, amount in enumerate(pads) if amount}
    if call.op.target in ("aten.tril", "aten.triu"):
        changed = {len(shape) - 2, len(shape) - 1}
    kept: list[str | None] = [None if i in changed and len(result) == len(shape) else n for i, n in enumerate(names)]
    if call.op.target in ("aten.tril", "aten.triu"):
        kept = list(names)
    kept += [None] * (len(result) - len(kept))
    locked = frozenset(names[i] or "" for i in changed)
    return Einsum(
        (names,),
        (tuple(kept),),
        locked,
        _ONE,
        why_locked="padding and triangles count from the border of the whole dim",
    )


@rule(
    *"""aten.zeros aten.ones aten.full aten.empty aten.new_zeros aten.new_ones aten.new_full aten.new_empty
    aten.scalar_tensor""".split()
)
def constant(call: Call) -> Semantics:
    """A constant whose elements are all equal."""
    return Fresh(uniform=True)


@rule("aten.arange", "aten.linspace", "aten.eye", "aten.logspace", "constant")
def counted(call: Call) -> Semantics:
    """A constant whose elements count from the start of the whole dim."""
    return Fresh(uniform=False)


@rule("view_write")
def view_write(call: Call) -> Semantics:
    """A tensor after a write to one of its views."""
    return Write()


@rule("repeat")
def repeated_layer(call: Call) -> Semantics:
    """A layer for which another layer of the same kind stands in the trace."""
    return Same()
