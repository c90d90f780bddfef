"""Lookups: the indexed dim must be whole, because an index counts from its start; the other dims may be sharded."""

from shardproof.planner.ir.graph import READ, Arg, Ref
from shardproof.planner.propagation.rules.registry import rule
from shardproof.planner.propagation.semantics import Call, Einsum, Letters

_WHY = "an index counts over the whole dim, and a rank holds only its part"


@rule("embedding", "aten.embedding")
def embedding(call: Call) -> Einsum:
    """`y[..., h] = w[ids[...], h]`; a sharded vocabulary dim needs a mask and an all-reduce, which only a style's hook adds."""
    ids: Letters = tuple(f"i{position}" for position in range(len(call.shapes[1])))
    return Einsum((("v", "h"), ids), ((*ids, "h"),), frozenset({"v"}), (frozenset({0}),), why_locked=_WHY)


@rule("aten.index")
def index(call: Call) -> Einsum | None:
    """Advanced indexing: the dims of the indices replace the indexed dims."""
    shape = call.shapes[0]
    given = call.op.arg(1, "indices")
    if not isinstance(given, tuple):
        return None
    names: Letters = tuple(f"d{position}" for position in range(len(shape)))
    at = [position for position, item in enumerate(given) if isinstance(item, Ref)]
    if any(_is_mask(call, given[position]) for position in at):
        return _masked(call, given, names)
    tensors = [call.shape(given[position]) for position in at]
    width = max((len(tensor) for tensor in tensors), default=0)
    taken = len(shape) - (len(call.results[0]) - width)
    indexed = set(at) if taken == len(at) else set(range(min(at, default=0), min(at, default=0) + taken))
    inner: Letters = tuple(f"i{position}" for position in range(width))
    first = (
        min(indexed, default=0)
        if sorted(indexed) == list(range(min(indexed, default=0), max(indexed, default=-1) + 1))
        else 0
    )
    rest = [(position, name) for position, name in enumerate(names) if position not in indexed]
    output = (*(n for p, n in rest if p < first), *inner, *(n for p, n in rest if p >= first))
    indices = tuple(_index_letters(tensor, inner, call.results[0], first) for tensor in tensors)
    locked = frozenset(names[position] or "" for position in indexed)
    return Einsum((names, *indices), (output,), locked, (frozenset({0}),), why_locked=_WHY)


def _is_mask(call: Call, arg: Arg) -> bool:
    return isinstance(arg, Ref) and call.graph.values[arg.value].dtype in ("bool", "uint8")


def _masked(call: Call, given: tuple[Arg, ...], names: Letters) -> Einsum:
    """Indexing by masks: a mask covers as many dims as it has, which must be whole; the selected elements are one new dim."""
    indices: list[Letters] = []
    locked: set[str | None] = set()
    position = 0
    for item in given:
        if not isinstance(item, Ref):
            position += 1
            continue
        ndim = len(call.shape(item))
        over = names[position : position + ndim] if _is_mask(call, item) else names[position : position + 1]
        indices.append(over if _is_mask(call, item) else (None,) * ndim)
        locked.update(over)
        position += len(over)
    rest = tuple(name for name in names if name not in locked)
    found = len(call.results[0]) - len(rest)
    first = next((at for at, item in enumerate(given) if isinstance(item, Ref)), 0)
    output = (*rest[:first], *((None,) * found), *rest[first:])
    return Einsum(
        (names, *indices), (output,), frozenset(name or "" for name in locked), (frozenset({0}),), why_locked=_WHY
    )


def _index_letters(tensor: tuple[int, ...], inner: Letters, result: tuple[int, ...], first: int) -> Letters:
    offset = len(inner) - len(tensor)
    return tuple(
        inner[offset + position] if size == result[first + offset + position] else None
        for position, size in enumerate(tensor)
    )


@rule("aten.index_select")
def index_select(call: Call) -> Einsum:
    """One dim indexed by a list."""
    dim = call.number(1, "dim", 0) % len(call.shapes[0])
    names: Letters = tuple(f"d{position}" for position in range(len(call.shapes[0])))
    output = tuple("i" if position == dim else name for position, name in enumerate(names))
    return Einsum((names, ("i",)), (output,), frozenset({f"d{dim}"}), (frozenset({0}),), why_locked=_WHY)


@rule("aten.gather")
def gather(call: Call) -> Einsum:
    """Reads along `dim` by index; elementwise in the other dims."""
    ndim = len(call.shapes[0])
    dim = call.number(1, "dim", 0) % ndim
    names: Letters = tuple(f"d{position}" for position in range(ndim))
    chosen = tuple("i" if position == dim else name for position, name in enumerate(names))
    locked = frozenset({f"d{dim}", *_shorter(call, dim)})
    return Einsum((names, chosen), (chosen,), locked, (frozenset({0}),), why_locked=_WHY)


def _shorter(call: Call, dim: int) -> set[str]:
    """The other dims in which the index (or what is written) is shorter: it meets the first elements of the whole dim."""
    whole, *others = (shape for shape in call.shapes if len(shape) == len(call.shapes[0]))
    return {f"d{at}" for other in others for at, size in enumerate(other) if at != dim and size != whole[at]}


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce", "aten.index_add", "aten.index_copy", "aten.index_fill")
def scatter(call: Call) -> Einsum:
    """Writes along `dim` by index; elementwise in the other dims."""
    shape = call.shapes[0]
    dim = call.number(1, "dim", 0) % max(len(shape), 1)
    names: Letters = tuple(f"d{position}" for position in range(len(shape)))
    other = tuple("i" if position == dim else name for position, name in enumerate(names))
    by_row = call.op.target.startswith("aten.index")
    inputs: list[Letters] = [names, ("i",) if by_row else other]
    inputs += [other if len(extra) == len(shape) else (None,) * len(extra) for extra in call.shapes[2:]]
    linear = (frozenset({0, 2}),) if len(inputs) == 3 and "reduce" not in call.op.target else ()
    locked = {f"d{dim}"} if by_row else {f"d{dim}", *_shorter(call, dim)}
    return Einsum(
        tuple(inputs),
        (names,),
        frozenset(locked),
        linear,
        added=frozenset({0, 2}) if linear else frozenset(),
        why_locked=_WHY,
    )


@rule("aten.index_put", "aten._index_put_impl", "aten._unsafe_index_put")
def index_put(call: Call) -> Einsum | None:
    """Rows replaced or added to: indexed dims locked, the rest elementwise."""
    given: Arg = call.op.arg(1, "indices")
    if not isinstance(given, tuple):
        return None
    shape = call.shapes[0]
    at = [position for position, item in enumerate(given) if isinstance(item, Ref)]
    masks = sum(
        len(call.shape(given[position])) - 1
        for position in at
        if call.graph.values[_value(given[position])].dtype == "bool"
    )
    indexed = {*at, *range(max(at, default=0), max(at, default=0) + masks + 1)} if at else set()
    names: Letters = tuple(f"d{position}" for position in range(len(shape)))
    kept = tuple(name for position, name in enumerate(names) if position not in indexed)
    values = call.shape(call.op.arg(2, "values"))
    tail = (*((None,) * (len(values) - len(kept))), *kept[max(len(kept) - len(values), 0) :])
    fitted = tuple(None if values[i] == 1 else name for i, name in enumerate(tail))
    indices = tuple((None,) * len(call.shape(given[position])) for position in at)
    last = 1 + len(indices)
    locked = frozenset(names[position] or "" for position in indexed)
    sums = frozenset({0, last})
    return Einsum((names, *indices, fitted), (names,), locked, (sums,), added=sums, why_locked=_WHY)


def _value(arg: Arg) -> int:
    return arg.value if isinstance(arg, Ref) else -1


@rule("one_hot")
def one_hot(call: Call) -> Einsum:
    """One-hot encoding: a new last dim, which is whole."""
    names: Letters = tuple(f"d{position}" for position in range(len(call.shapes[0])))
    return Einsum((names,), ((*names, None),))


@rule(
    READ,
    "aten._local_scalar_dense",
    "aten.masked_select",
    "aten._unique2",
    "aten.bincount",
    "aten.histc",
    "aten.searchsorted",
)
def whole_only(call: Call) -> Einsum:
    """Every output depends on all elements of every input."""
    return _of_all(call, near=False)


@rule("aten.nonzero")
def nonzero(call: Call) -> Einsum:
    """The places of all elements that are not zero; a rank may read and write those of its own part alone: undecided."""
    return _of_all(call, near=True)


def _of_all(call: Call, *, near: bool) -> Einsum:
    inputs = tuple(tuple(f"t{n}d{i}" for i in range(len(shape))) for n, shape in enumerate(call.shapes))
    outputs: tuple[Letters, ...] = tuple((None,) * len(result) for result in call.results)
    every = frozenset(name for letters in inputs for name in letters)
    return Einsum(inputs, outputs, every, why_locked=_WHY, near=near)
