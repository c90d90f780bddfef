"""The limits of the degree: every size in one proof that has to divide.

Placements do not depend on the degree; only sizes do. So a proof at one degree holds at every degree at which the sharded
dims can be divided as its ops need. Heads in a view must divide evenly. Elsewhere the last rank may hold fewer elements of
a dim (or of every packed block), but not none.
"""

from collections.abc import Collection, Iterator
from math import gcd, prod

from shardproof.planner.ir.degrees import Limit
from shardproof.planner.ir.findings import Place
from shardproof.planner.ir.graph import Op, Shape
from shardproof.planner.ir.placement import R, Shard
from shardproof.planner.ir.plan import generic
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.propagation.forward.propagate import Propagation
from shardproof.planner.propagation.forward.relation import Pair
from shardproof.planner.propagation.forward.views import keeps_dim
from shardproof.planner.propagation.rules.registry import semantics
from shardproof.planner.propagation.semantics import Call, Einsum, Reshape


def limits(ran: Propagation, assigned: Assigned, *, alike: Collection[str]) -> tuple[Limit, ...]:
    """All limits of the degree of a plan whose forward was related without a fault; the first one for each size.

    `alike`: the parameters whose parts the client takes to be of one size.
    """
    found: dict[tuple[int | None, bool], Limit] = {}
    for limit in (*_of_ops(ran), *_of_parameters(ran, assigned, alike)):
        found.setdefault((limit.size, limit.even), limit)
    return tuple(found.values())


def lone_sizes(ran: Propagation) -> frozenset[int]:
    """The degrees at which a rank holds a single element of some sharded dim; a squeeze or a broadcast may behave
    differently there.
    """
    return frozenset(
        ran.whole.values[ran.same[number]].shape[placement.dim]
        for number, placement in ran.placements.items()
        if isinstance(placement, Shard) and ran.same.get(number, -1) >= 0
    )


def _of_parameters(ran: Propagation, assigned: Assigned, alike: Collection[str]) -> Iterator[Limit]:
    for name, (placement, entry) in assigned.parameters.items():
        if isinstance(placement, Shard):
            shape = ran.whole.values[ran.whole.parameters[name]].shape
            place = Place(entry, name.rpartition(".")[0])
            yield _limit(shape, placement, place, even=name in alike, name=generic(name))


def _of_ops(ran: Propagation) -> Iterator[Limit]:
    for pair in ran.pairs:
        even = pair.whole is not None and _parts_must_be_even(ran, pair, pair.whole)
        for number in (*pair.local.inputs, *pair.local.outputs):
            placement = ran.placements.get(number, R)
            if isinstance(placement, Shard):
                shape = ran.whole.values[ran.same[number]].shape
                place = Place(ran.entry_of.get(number), pair.local.module, pair.local.source)
                yield _limit(shape, placement, place, even=even)


def _parts_must_be_even(ran: Propagation, pair: Pair, whole: Op) -> bool:
    """Whether an op needs equal shards on all ranks: it regroups the sharded dim in a view, or pairs it with a dim of
    another size (grouped heads). A cut between packed blocks is at the same place on every rank, so it does not need them.
    """
    call = Call(ran.whole, whole)
    given = [ran.placements.get(number, R) for number in pair.local.inputs]
    match semantics(call):
        case Reshape():
            return not keeps_dim(
                call.shapes[0], call.results[0], given[0], ran.placements.get(pair.local.outputs[0], R)
            )
        case Einsum():
            sizes = {shape[p.dim] for shape, p in zip(call.shapes, given, strict=True) if isinstance(p, Shard)}
            return len(sizes) > 1
        case _:
            return False


def _limit(shape: Shape, placement: Shard, place: Place, *, even: bool, name: str = "") -> Limit:
    sizes = placement.block_sizes(shape[placement.dim]) or (shape[placement.dim] // placement.blocks,)
    size, rest = gcd(*sizes), prod(shape[placement.dim + 1 :])
    even = even or bool(placement.parts)
    what = f"{size} parts of {rest}" if even and rest > 1 else str(size)
    what += f" in each of {placement.blocks} blocks" if placement.blocks > 1 else ""
    return Limit(size, even, what + (f" (dim {placement.dim} of {name})" if name else ""), place)
