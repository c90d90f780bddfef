"""Reductions and ops along one dim: a sum over a sharded dim is a partial sum; all other ops need the dim whole."""

from shardproof.planner.propagation.rules.registry import rule
from shardproof.planner.propagation.semantics import Call, Einsum, Letters

ALONG_ONE = """aten._softmax aten._log_softmax aten.cumsum aten.cumprod aten.cummax aten.logcumsumexp aten.sort
    aten.flip aten.roll""".split()


def reduced_dims(call: Call, *, position: int = 1) -> tuple[int, ...]:
    """The dims that an op reduces or runs along; all dims if none is given."""
    ndim = len(call.shapes[0])
    dims = call.numbers(position, "dim") or call.numbers(position, "dims")
    return tuple(dim % ndim for dim in dims) if dims else tuple(range(ndim))


def _reduction(call: Call, *, locked: bool) -> Einsum:
    shape, dims = call.shapes[0], reduced_dims(call)
    names: Letters = tuple(f"d{position}" for position in range(len(shape)))
    kept: Letters = tuple(name for position, name in enumerate(names) if position not in dims)
    if call.results and len(call.results[0]) == len(shape):
        kept = tuple(None if position in dims else name for position, name in enumerate(names))
    over = frozenset(f"d{position}" for position in dims)
    why = "a statistic over a sharded dim sees only this rank's part"
    linear = () if locked else (frozenset({0}),)
    rest = tuple((None,) * len(extra) for extra in call.shapes[1:])
    return Einsum(
        (names, *rest), tuple(kept for _ in call.results), over if locked else frozenset(), linear, why_locked=why
    )


@rule("aten.sum")
def total(call: Call) -> Einsum:
    """A sum over a sharded dim is a partial sum."""
    return _reduction(call, locked=False)


@rule("aten.count_nonzero")
def count(call: Call) -> Einsum:
    """Each rank counts its own elements, so a count over a sharded dim is a partial sum; the elements of a partial sum
    cannot be counted.
    """
    found = _reduction(call, locked=False)
    return Einsum(found.inputs, found.outputs)


@rule("aten.mean")
def mean(call: Call) -> Einsum:
    """The mean needs the whole dim (a rank would divide by its own count). It is linear, so a partial sum stays one."""
    found = _reduction(call, locked=True)
    return Einsum(found.inputs, found.outputs, found.locked, (frozenset({0}),), why_locked=found.why_locked)


@rule(
    *"""aten.amax aten.amin aten.max aten.min aten.argmax aten.argmin aten.prod aten.any aten.all aten.std aten.var aten.norm
    aten.linalg_vector_norm aten.logsumexp aten.var_mean aten.std_mean aten.median aten.aminmax aten._is_all_true""".split()
)
def statistic(call: Call) -> Einsum:
    """Needs the whole dim, and values that are no partial sums."""
    if call.op.target in ("aten.linalg_vector_norm", "aten.norm"):
        return _statistic_at(call, 2)
    if call.op.target in ("aten.max", "aten.min") and len(call.shapes) == 2:
        return _pairwise(call)
    return _reduction(call, locked=True)


def _statistic_at(call: Call, position: int) -> Einsum:
    ndim = len(call.shapes[0])
    dims = tuple(d % ndim for d in call.numbers(position, "dim")) or tuple(range(ndim))
    names: Letters = tuple(f"d{i}" for i in range(ndim))
    keep = len(call.results[0]) == ndim
    kept = tuple(None if i in dims else n for i, n in enumerate(names) if keep or i not in dims)
    return Einsum(
        (names,),
        (kept,),
        frozenset(f"d{i}" for i in dims),
        why_locked="a norm over a sharded dim sees only this rank's part",
    )


def _pairwise(call: Call) -> Einsum:
    from shardproof.planner.propagation.rules.pointwise import elementwise

    return elementwise(call)


@rule(*ALONG_ONE)
def along_one_dim(call: Call) -> Einsum:
    """The result has the shape of the input; the dim that the op runs along must be whole."""
    shape = call.shapes[0]
    dims = reduced_dims(call)
    if call.op.target == "aten.roll":
        dims = tuple(d % len(shape) for d in call.numbers(2, "dims")) or tuple(range(len(shape)))
    if call.op.target == "aten.sort" and not call.numbers(1, "dim"):
        dims = (len(shape) - 1,)
    names: Letters = tuple(f"d{position}" for position in range(len(shape)))
    linear = (frozenset({0}),) if call.op.target in ("aten.cumsum", "aten.flip", "aten.roll") else ()
    outputs = tuple(names for _ in call.results)
    why = "softmax, sort and scans mix all of the dim they run along"
    return Einsum((names,), outputs, frozenset(f"d{i}" for i in dims), linear, why_locked=why)


@rule("aten._fft_r2c", "aten._fft_c2c", "aten._fft_c2r")
def fourier(call: Call) -> Einsum:
    """Linear; the dims that are transformed must be whole."""
    names: Letters = tuple(f"d{position}" for position in range(len(call.shapes[0])))
    over = reduced_dims(call)
    kept: Letters = tuple(None if position in over else name for position, name in enumerate(names))
    why = "a Fourier transform mixes all of the dim it runs along"
    return Einsum((names,), (kept,), frozenset(f"d{i}" for i in over), (frozenset({0}),), why_locked=why)


@rule("aten.topk", "aten.kthvalue")
def topk(call: Call) -> Einsum:
    """Top-k needs the whole dim; the result has a new dim instead, or with `kthvalue` none."""
    ndim = len(call.shapes[0])
    dim = call.number(2, "dim", -1) % ndim
    names: Letters = tuple(f"d{position}" for position in range(ndim))
    kept = [None if position == dim else name for position, name in enumerate(names)]
    if len(call.results[0]) < ndim:
        del kept[dim]
    return Einsum(
        (names,),
        tuple(tuple(kept) for _ in call.results),
        frozenset({f"d{dim}"}),
        why_locked="top-k picks among all of the dim",
    )


@rule(
    *(f"aten.{name}{dims}d" for name in ("avg_pool", "_adaptive_avg_pool", "upsample_nearest") for dims in (2, 3)),
    *("aten.max_pool2d_with_indices", "aten.max_pool3d_with_indices", "aten.upsample_nearest1d"),
    *("aten.upsample_linear1d", "aten.upsample_bilinear2d"),
    *(f"aten.{name}_pad{dims}d" for name in ("replication", "reflection") for dims in (1, 2)),
)
def over_windows(call: Call) -> Einsum:
    """Pooling, resampling and padding by what is there: the last dims are mixed, those before are independent."""
    shape = call.shapes[0]
    last = next(int(one) for one in ("1", "2", "3") if f"{one}d" in call.op.target)
    names: Letters = tuple(f"d{position}" for position in range(len(shape)))
    kept: Letters = (*names[: len(shape) - last], *((None,) * last))
    mixed = frozenset(name or "" for name in names[len(shape) - last :])
    why = "a window mixes what lies beside each other, and may reach into the part of another rank"
    linear = () if "max" in call.op.target else (frozenset({0}),)
    return Einsum((names,), tuple(kept for _ in call.results), mixed, linear, why_locked=why, near=True)


@rule("aten.grid_sampler_2d")
def sampled(call: Call) -> Einsum:
    """`y[n, c, i, j]` is read from `x[n, c, ...]` at the place `grid[n, i, j]`."""
    why = "a place may lie in the part of another rank"
    inputs: tuple[Letters, ...] = (("n", "c", "h", "w"), ("n", "i", "j", "xy"))
    return Einsum(inputs, (("n", "c", "i", "j"),), frozenset({"h", "w", "xy"}), (frozenset({0}),), why_locked=why)


@rule("aten.im2col")
def windows(call: Call) -> Einsum:
    """The windows of an image: of each channel so many rows, channel by channel, and a column for each window."""
    lead: Letters = ("n",) if len(call.shapes[0]) == 4 else ()
    why = "a window mixes what lies beside each other, and may reach into the part of another rank"
    mixed = frozenset({"h", "w"})
    return Einsum(((*lead, "c", "h", "w"),), ((*lead, "c", None),), mixed, (frozenset({0}),), why_locked=why, near=True)
