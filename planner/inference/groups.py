"""Group dims that must be sharded together, by unifying the dims that each op ties.

A dim is a row-major product of atoms. A view regroups atoms and splits them if necessary (4096 -> 32 x 128). A slice or a
concatenation makes an atom a sequence of blocks (gate | up). Every other op unifies the dims that share a letter in its
rule. An op that needs a whole dim (a softmax over it, an index into it, a fixed size) locks the dim's atoms, with the reason.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import TypeAlias

from shardproof.planner.ir.graph import Graph, Op, Shape
from shardproof.planner.propagation.rules.registry import semantics
from shardproof.planner.propagation.semantics import Call, Concat, Einsum, Fresh, Narrow, Reshape, Same, Write

Dim: TypeAlias = "tuple[Atom, ...]"


@dataclass(eq=False)
class Atom:
    """A factor of a dim with `size` elements. `parent` links unified atoms; an atom may be split into `factors` or into
    `blocks`.
    """

    size: int
    parent: "Atom | None" = None
    factors: "tuple[Atom, ...]" = ()
    blocks: "tuple[Dim, ...]" = ()
    locks: dict["Lock", None] = field(default_factory=dict)
    sums: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Lock:
    """Why an atom cannot be sharded: the position of the op that needs it whole, and the reason."""

    position: int
    why: str


def root(atom: Atom) -> Atom:
    """The representative of the atoms that are unified with an atom."""
    while atom.parent is not None:
        atom = atom.parent
    return atom


def leaves(dim: Dim) -> Dim:
    """The finest factors of a dim, the outermost first, without atoms of size one."""
    found: list[Atom] = []
    for atom in dim:
        top = root(atom)
        if top.factors:
            found += leaves(top.factors)
        elif top.size != 1:
            found.append(top)
    return tuple(found)


def size_of(dim: Dim) -> int:
    """The number of elements along a dim."""
    return prod(atom.size for atom in dim)


def lock(dim: Dim, reason: Lock) -> None:
    """Mark all atoms of a dim as not shardable, with the reason."""
    for atom in leaves(dim):
        if reason not in atom.locks:
            atom.locks[reason] = None
            for block in atom.blocks:
                lock(block, reason)


@dataclass
class Groups:
    """The dims of every value of a graph after unification; `dims[value][i]` is dim `i`."""

    graph: Graph
    dims: dict[int, tuple[Dim, ...]] = field(default_factory=dict)

    def of(self, number: int) -> tuple[Dim, ...]:
        """The dims of a value; new ones if it has none yet."""
        if number not in self.dims:
            self.dims[number] = fresh(self.graph.values[number].shape)
        return self.dims[number]


def fresh(shape: Shape) -> tuple[Dim, ...]:
    """New dims for a shape, one new atom each."""
    return tuple((Atom(size),) for size in shape)


def infer_groups(graph: Graph) -> Groups:
    """Unify dims over all ops of a graph. Dims of the model's outputs are locked, because its caller needs them whole."""
    groups = Groups(graph)
    for position, op in enumerate(graph.ops):
        _unify_op(groups, position, op)
    for _, number in graph.outputs:
        for dim in groups.of(number):
            lock(dim, Lock(graph.producer.get(number, -1), "the model's output must be whole"))
    return groups


def _unify_op(groups: Groups, position: int, op: Op) -> None:
    call = Call(groups.graph, op)
    meaning = semantics(call)
    inputs = [groups.of(number) for number in op.inputs]
    outputs = [fresh(shape) for shape in call.results]
    match meaning:
        case Einsum():
            _by_letter(meaning, inputs, outputs, position)
        case Reshape():
            outputs = [_regroup(inputs[0], call.results[0], position)]
        case Narrow():
            outputs = _cut(meaning, inputs[0], position)
        case Concat(dim):
            outputs = [_joined(dim, inputs, call.results[0], position)]
        case Same() | None:
            why = "a layer takes and gives whole values" if meaning else f"no rule for {op.target}"
            for given in _each(inputs):
                lock(given, Lock(position, why))
        case Write():
            outputs = [inputs[0]]
        case Fresh():
            pass
    for number, dims in zip(op.outputs, outputs, strict=True):
        groups.dims[number] = dims


def _each(many: Iterable[tuple[Dim, ...]]) -> Iterator[Dim]:
    for dims in many:
        yield from dims


def _by_letter(meaning: Einsum, inputs: list[tuple[Dim, ...]], outputs: list[tuple[Dim, ...]], position: int) -> None:
    first: dict[str, Dim] = {}
    kept = {letter for letters in meaning.outputs for letter in letters}
    for letters, dims in zip((*meaning.inputs, *meaning.outputs), (*inputs, *outputs), strict=True):
        for letter, dim in zip(letters, dims, strict=True):
            if letter is None or size_of(dim) == 1:
                continue
            if letter in first:
                unify(first[letter], dim, position)
            first.setdefault(letter, dim)
    for letter, dim in first.items():
        if letter in meaning.locked:
            lock(dim, Lock(position, meaning.why_locked))
        elif letter not in kept:
            for atom in leaves(dim):
                atom.sums.append(position)
                for block in atom.blocks:
                    for inner in leaves(block):
                        inner.sums.append(position)


def unify(one: Dim, other: Dim, position: int) -> None:
    """Unify two dims. A smaller dim (KV heads) becomes the outer factor of the larger one (query heads)."""
    left, right = list(leaves(one)), list(leaves(other))
    while left and right:
        a, b = left[0], right[0]
        if a is b:
            pass
        elif a.size == b.size:
            _merge(a, b, position)
        elif b.size and a.size % b.size == 0 and _split(a, (b.size, a.size // b.size), position):
            left[:1] = leaves((a,))
            continue
        elif a.size and b.size % a.size == 0 and _split(b, (a.size, b.size // a.size), position):
            right[:1] = leaves((b,))
            continue
        else:
            reason = Lock(position, "the same dim is cut in two ways that do not fit")
            lock(tuple(left), reason)
            lock(tuple(right), reason)
            return
        left.pop(0)
        right.pop(0)


def _merge(a: Atom, b: Atom, position: int) -> None:
    a, b = root(a), root(b)
    if a is b:
        return
    blocks = a.blocks or b.blocks
    if a.blocks and b.blocks:
        if [size_of(x) for x in a.blocks] == [size_of(x) for x in b.blocks]:
            pairs = list(zip(a.blocks, b.blocks, strict=True))
            b.parent = a
            _inherit(a, b)
            for x, y in pairs:
                unify(x, y, position)
            return
        reason = Lock(position, "the same dim is cut into blocks in two ways")
        lock((a,), reason)
        lock((b,), reason)
        return
    added = tuple(b.locks if a.blocks else a.locks)  # the blocks already have the locks of their own atom
    b.parent = a
    a.blocks = blocks
    _inherit(a, b)
    for reason in added if blocks else ():
        for block in blocks:
            lock(block, reason)


def _inherit(a: Atom, b: Atom) -> None:
    a.locks |= b.locks
    a.sums += b.sums


def _split(atom: Atom, sizes: tuple[int, ...], position: int) -> bool:
    """Split an atom into factors, the outermost first; false if it is already split into blocks."""
    atom = root(atom)
    if atom.blocks:
        reason = Lock(position, "a dim that is cut into blocks is also split into factors")
        lock((atom,), reason)
        return False
    atom.factors = tuple(Atom(size, locks=dict(atom.locks), sums=list(atom.sums)) for size in sizes)
    return True


def _regroup(dims: tuple[Dim, ...], result: Shape, position: int) -> tuple[Dim, ...]:
    """A row-major view: the same atoms, regrouped into new dims; an atom is split if a border of a new dim is inside it."""
    rest = [atom for dim in dims for atom in leaves(dim)]
    if 0 in result:  # no elements
        return fresh_locked(result, position)
    made: list[Dim] = []
    for size in result:
        taken: list[Atom] = []
        while (have := prod(atom.size for atom in taken)) < size and rest:
            atom = rest.pop(0)
            missing = size // have
            if missing % atom.size and not _fits(atom, missing, rest, position):
                lock((atom, *rest), Lock(position, "a view cuts across this dim"))
                return fresh_locked(result, position)
            taken += [atom] if missing % atom.size == 0 else [rest.pop(0)]
        made.append(tuple(taken) if taken else (Atom(1),))
    return tuple(made)


def _fits(atom: Atom, missing: int, rest: list[Atom], position: int) -> bool:
    """Split an atom into an outer factor of `missing` elements and the rest, and put both back on `rest`; false if
    impossible.
    """
    if atom.size % missing or not _split(atom, (missing, atom.size // missing), position):
        return False
    rest[:0] = leaves((atom,))
    return True


def fresh_locked(shape: Shape, position: int) -> tuple[Dim, ...]:
    """New dims for a shape, all locked."""
    dims = fresh(shape)
    for dim in dims:
        lock(dim, Lock(position, "its origin was lost in a view that cuts across dims"))
    return dims


def _cut(meaning: Narrow, dims: tuple[Dim, ...], position: int) -> list[tuple[Dim, ...]]:
    """Slices of one dim: its outermost atom is split into blocks, if the cuts fit."""
    dim = dims[meaning.dim]
    size = size_of(dim)
    parts: list[Dim] = []
    if meaning.lengths == (size,):
        parts = [dim]
    else:
        atoms = leaves(dim)
        inner = prod(atom.size for atom in atoms[1:])
        bounds = {*meaning.starts, *(s + n for s, n in zip(meaning.starts, meaning.lengths, strict=True))}
        if (
            not atoms
            or any(bound % inner for bound in bounds)
            or not _into_blocks(atoms[0], {b // inner for b in bounds}, position)
        ):
            lock(dim, Lock(position, "a slice by position cuts across this dim"))
            parts = [(Atom(length),) for length in meaning.lengths]
        else:
            for start, length in zip(meaning.starts, meaning.lengths, strict=True):
                parts.append((*_blocks_between(atoms[0], start // inner, (start + length) // inner), *atoms[1:]))
    return [(*dims[: meaning.dim], part, *dims[meaning.dim + 1 :]) for part in parts]


def _into_blocks(atom: Atom, bounds: set[int], position: int) -> bool:
    """Split an atom into blocks at `bounds` and at its existing bounds; false if a bound is inside a block that has factors."""
    if not atom.blocks:
        borders = sorted({0, atom.size} | bounds)
        if len(borders) == 2:
            return True
        atom.blocks = tuple((Atom(b - a, locks=dict(atom.locks), sums=list(atom.sums)),) for a, b in pairwise(borders))
        return True
    made: list[Dim] = []
    start = 0
    for block in atom.blocks:
        stop = start + size_of(block)
        inside = sorted(b for b in bounds if start < b < stop)
        if not inside:
            made.append(block)
        else:
            parts = leaves(block)
            if len(parts) != 1 or not _into_blocks(parts[0], {b - start for b in inside}, position):
                return False
            made += parts[0].blocks
        start = stop
    atom.blocks = tuple(made)
    return True


def _blocks_between(atom: Atom, start: int, stop: int) -> Dim:
    if not atom.blocks:
        return (atom,)
    chosen: list[Dim] = []
    at = 0
    for block in atom.blocks:
        if start <= at < stop:
            chosen.append(block)
        at += size_of(block)
    if len(chosen) == 1:
        return chosen[0]
    return (Atom(stop - start, blocks=tuple(chosen)),)


def _joined(dim: int, inputs: list[tuple[Dim, ...]], result: Shape, position: int) -> tuple[Dim, ...]:
    """A concatenation: blocks along `dim`; all other dims are unified."""
    full = [dims for dims in inputs if len(dims) == len(result) and all(size_of(d) for d in dims)]
    made: list[Dim] = []
    for axis in range(len(result)):
        parts = [dims[axis] for dims in full]
        if axis != dim:
            for part in parts[1:]:
                unify(parts[0], part, position)
            made.append(parts[0])
        else:
            made.append(parts[0] if len(parts) == 1 else (Atom(result[axis], blocks=tuple(parts)),))
    return tuple(made)


def inner_leaves(dim: Dim) -> list[Atom]:
    """The atoms of a dim, and those of the blocks that they are sequences of."""
    found: dict[Atom, None] = {}
    for atom in leaves(dim):
        if not atom.blocks:
            found[atom] = None
        for block in atom.blocks:
            found |= dict.fromkeys(inner_leaves(block))
    return list(found)
