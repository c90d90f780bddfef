"""The placement of a shard after a view or a cut: one dim became several, several became one, or a part was taken."""

from math import prod

from shardproof.planner.ir.graph import Graph, Ref, Shape
from shardproof.planner.ir.placement import Placement, R, Shard, packed
from shardproof.planner.propagation.forward.relation import Placements, Problem, name
from shardproof.planner.propagation.rules.registry import semantics
from shardproof.planner.propagation.semantics import Call, Concat, Einsum, Narrow, Semantics


def flat(shape: Shape, placement: Shard) -> tuple[int, int]:
    """A shard in row-major order: the number of sharded runs (the product of the dims before, times blocks) and the run's
    length.
    """
    outer = prod(shape[: placement.dim]) * placement.blocks
    return outer, prod(shape) // outer if outer else 0


def reshaped(shape: Shape, result: Shape, placement: Shard, degree: int) -> Shard | None:
    """The placement of a shard after a row-major reshape; None if a rank's part would not be a shard of one dim."""
    if placement.parts:
        return _same_dim(shape, result, placement)
    outer, _ = flat(shape, placement)
    before = 1
    for dim, size in enumerate(result):
        if before * size > outer:
            if outer % before:
                return None
            found = Shard(dim, outer // before)
            if size % found.blocks:
                return None
            even = size % (found.blocks * degree) == 0
            return found if even or keeps_dim(shape, result, placement, found) else None
        before *= size
    return None


def _same_dim(shape: Shape, result: Shape, placement: Shard) -> Shard | None:
    """The placement of unequal blocks after a reshape that keeps their dim; None where it does not."""
    size, outer = shape[placement.dim], prod(shape[: placement.dim])
    at = next((d for d in range(len(result)) if prod(result[:d]) == outer and result[d] == size), None)
    return None if at is None else placement.to(at)


def keeps_dim(shape: Shape, result: Shape, before: Placement, after: Placement) -> bool:
    """Whether a reshape keeps the sharded dim, with the same size and the same elements per position, so that an uneven
    shard stays valid.
    """
    return (
        isinstance(before, Shard)
        and isinstance(after, Shard)
        and before.parts == after.parts
        and shape[before.dim] * after.blocks == result[after.dim] * before.blocks
    )


def reshape(whole: Call, placement: Placement, degree: int) -> Placements | Problem:
    if not isinstance(placement, Shard):
        return (placement,)
    shape, result = whole.shapes[0], whole.results[0]
    found = reshaped(shape, result, placement, degree)
    if found is not None:
        return (found,)
    return Problem(
        "TP201",
        f"a view cuts {list(shape)} at {placement} into {list(result)}",
        "a rank's boundary falls inside one of the new dims (a head, a block)",
        str(placement),
        f"a dim of {list(result)} that divides by {degree}",
    )


def cut_inside(whole: Call, local: Call, placements: Placements, degree: int) -> Problem | None:
    """The problem of a view with an inferred size (-1): a rank's part holds no whole number of heads."""
    placement = placements[0] if placements else None
    if whole.op.target != "aten.view" or not isinstance(placement, Shard):
        return None
    given = local.op.args[1:]
    sizes = given[0] if len(given) == 1 and isinstance(given[0], tuple) else given
    outer, _ = flat(whole.shapes[0], placement)
    if -1 not in sizes or prod(whole.results[0][: sizes.index(-1)]) != outer:
        return None
    return Problem(
        "TP201",
        f"a view cuts {list(whole.shapes[0])} at {placement} into {list(whole.results[0])}",
        "a rank's boundary falls inside one of the new dims (a head, a block)",
        f"{placement} over {degree} ranks",
        "a degree that divides the number of heads or blocks, or this projection whole",
    )


def narrow(meaning: Narrow, whole: Call, local: Call, placement: Placement, degree: int) -> Placements | Problem:
    count = len(meaning.starts)
    size = whole.shapes[0][meaning.dim]
    if not isinstance(placement, Shard) or placement.dim != meaning.dim:
        there = semantics(local)
        if isinstance(there, Narrow) and there.starts != meaning.starts:
            return _other_part(whole, there, meaning)
        return tuple(placement for _ in range(count))
    if meaning.lengths == (size,):
        return (placement,)
    if placement.parts:
        return _unequal(meaning, whole, local, placement, degree)
    block = size // placement.blocks
    if any(number % block for number in (*meaning.starts, *meaning.lengths)):
        if _put_together_again(whole, meaning.dim) or _written_back(whole, meaning):
            return Problem(
                "TP210",
                f"{name(whole)} cuts a sharded dim, and the parts are put together again in their order",
                "the cut may cancel out, and no rule tells of a cut and a cat (or a write) together",
                str(placement),
                "the op on the whole dim, without the cut",
            )
        parts = max(size // max(meaning.lengths[0], 1), 1)
        return Problem(
            "TP213",
            f"{name(whole)} cuts a sharded dim of {size} at {sorted({*meaning.starts, *meaning.lengths})}",
            "a rank's contiguous part does not hold its share of every packed block",
            str(placement),
            f"S({meaning.dim}/{parts})",
            0,
        )
    there = semantics(local)
    part = -(-block // degree)
    if not isinstance(there, Narrow) or there.starts != tuple(start // block * part for start in meaning.starts):
        return _offsets(whole, placement)
    # An empty part is the same on every rank.
    return tuple(Shard(meaning.dim, length // block) if length else R for length in meaning.lengths)


def _other_part(whole: Call, there: Narrow, meaning: Narrow) -> Problem:
    got, wanted = (" ".join(map(str, one.starts)) for one in (there, meaning))
    return Problem(
        "TP209",
        f"{name(whole)} begins at {got} on a rank",
        "a constant was taken from a local size",
        got,
        wanted,
    )


def _unequal(meaning: Narrow, whole: Call, local: Call, placement: Shard, degree: int) -> Placements | Problem:
    """A cut between packed blocks of unequal sizes."""
    sizes = placement.block_sizes(whole.shapes[0][placement.dim]) or ()
    edges = [sum(sizes[:at]) for at in range(len(sizes) + 1)]
    found = []
    for start, length in zip(meaning.starts, meaning.lengths, strict=True):
        if start not in edges or start + length not in edges:
            return Problem(
                "TP213",
                f"{name(whole)} cuts packed blocks of {list(sizes)} at {sorted({*meaning.starts, *meaning.lengths})}",
                "a rank holds a share of every block, and the cut falls inside one",
                str(placement),
                f"a cut at {edges}",
                0,
            )
        found.append(packed(meaning.dim, sizes[edges.index(start) : edges.index(start + length)]))
    there = semantics(local)
    if not isinstance(there, Narrow) or there.starts != tuple(start // degree for start in meaning.starts):
        return _offsets(whole, placement)
    return tuple(found)


def _offsets(whole: Call, placement: Placement) -> Problem:
    return Problem(
        "TP203",
        f"{name(whole)} uses global offsets on a sharded dim",
        "the same offset means another place in a rank's part",
        str(placement),
        "offsets taken from the local size",
    )


def _put_together_again(whole: Call, dim: int) -> bool:
    """Whether all parts of a dim, each after the same ops, go into one cat in their order."""
    parts = _parts(whole, dim)
    reached = [found for _, _, number in parts if (found := _before_cat(whole.graph, number)) is not None]
    if len(parts) < 2 or len(reached) < len(parts) or len({cat for cat, _, _ in reached}) > 1:
        return False
    given = whole.graph.ops[reached[0][0]].inputs
    places = [{at for at, number in enumerate(given) if number in made} for _, made, _ in reached]
    return places == [{at} for at in range(len(parts))] and len({ops for _, _, ops in reached}) == 1


def _parts(whole: Call, dim: int) -> list[tuple[int, int, int]]:
    """Start, end and value of the parts into which a dim is cut, in order; none where they do not cover it."""
    graph, source = whole.graph, whole.op.inputs[0]
    cuts = [(call, semantics(call)) for call in (Call(graph, graph.ops[at]) for at in graph.users.get(source, ()))]
    found = sorted(
        (start, start + length, number)
        for call, cut in cuts
        if isinstance(cut, Narrow) and cut.dim == dim and call.op.inputs[:1] == (source,)
        for start, length, number in zip(cut.starts, cut.lengths, call.op.outputs, strict=True)
    )
    edges = [0, *(end for _, end, _ in found)]
    covered = [start for start, _, _ in found] == edges[:-1] and edges[-1] == whole.shapes[0][dim]
    return found if covered else []


def _before_cat(graph: Graph, number: int) -> tuple[int, frozenset[int], str] | None:
    """The one cat that a value reaches by every way, the values that depend on it before that, and the ops that made them."""
    made, cats, between, left = {number}, set[int](), dict[int, str](), [number]
    while left:
        users = graph.users.get(left.pop(), ())
        if not users:
            return None
        for at in users:
            op = graph.ops[at]
            if isinstance(semantics(Call(graph, op)), Concat):
                cats.add(at)
            elif at not in between:
                between[at] = f"{op.target}{[arg for arg in op.args if not isinstance(arg, Ref | tuple)]}"
                made.update(op.outputs)
                left += op.outputs
    if len(cats) != 1 or any(each in made for _, each in graph.outputs):
        return None
    return cats.pop(), frozenset(made), " ".join(between[at] for at in sorted(between))


def _written_back(whole: Call, meaning: Narrow) -> bool:
    """Whether one part of a dim goes, through ops per element, into the same part of another tensor; or is that other part."""
    graph, number = whole.graph, whole.op.outputs[0]
    while len(users := graph.users.get(number, ())) == 1 and per_element(user := Call(graph, graph.ops[users[0]])):
        number = user.op.outputs[0]
    if len(users) != 1 or (write := graph.ops[users[0]]).target != "aten.copy_":
        return False
    return all(_narrowed(graph, one) == meaning for one in write.inputs)


def _narrowed(graph: Graph, number: int) -> Semantics | None:
    """The cut that a value comes from, through ops per element; else the semantics of another op."""
    while number in graph.producer:
        call = Call(graph, graph.ops[graph.producer[number]])
        if not per_element(call):
            return semantics(call)
        number = call.op.inputs[0]
    return None


def per_element(call: Call) -> bool:
    """Whether an op has one tensor, and makes every element of its result from the same element of that."""
    meaning = semantics(call)
    return (
        isinstance(meaning, Einsum)
        and not meaning.locked
        and meaning.inputs == meaning.outputs
        and len(meaning.inputs) == 1
    )
