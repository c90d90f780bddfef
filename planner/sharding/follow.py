"""One op, two programs: from the placements of the inputs to those of the outputs, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import assert_never

from planner.ir.graph import Arg, Op, Ref, Shape
from planner.ir.placement import P, Partial, Placement, R, Replicate, Shard, local_shape
from planner.sharding.registry import semantics
from planner.sharding.semantics import Call, Concat, Einsum, Fresh, Narrow, Reshape, Same, Write


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an op's local result is no part of its global one; `blame` is the input that should have been another."""

    code: str
    message: str
    why: str
    found: str
    needed: str
    blame: int | None = None


Placements = tuple[Placement, ...]

_SIZES_FREE = ("view", "reshape", "expand", "zeros", "ones", "empty", "split", "slice", "repeat")


def follow(
    whole: Call, local: Call, placements: Placements, degree: int, *, masked: bool = False
) -> Placements | Problem:
    """Follow one op.

    Args:
        whole, local: the op in the single-device and in the per-rank program.
        placements: of the inputs, none `Unknown`.
        masked: a lookup whose ids the style's hook has cut to this rank's rows.
    """
    if len(local.results) != len(whole.results):
        return _other_count(whole, local)
    result = related(whole, local, placements, degree, masked=masked)
    if isinstance(result, Problem):
        return result
    return _shapes_agree(whole, local, result, degree) or _constants_agree(whole, local) or result


def related(
    whole: Call, local: Call, placements: Placements, degree: int, *, masked: bool = False
) -> Placements | Problem:
    """What the rule table says of an op, before the local result is looked at; also of a local op that failed."""
    meaning = semantics(whole)
    match meaning:
        case None:
            return _no_rule(whole, placements)
        case Einsum():
            return _einsum(_unlocked(meaning) if masked else meaning, whole, local, placements, degree)
        case Reshape():
            return _reshape(whole, placements[0], degree)
        case Narrow():
            return _narrow(meaning, whole, local, placements[0], degree)
        case Concat(dim):
            return _concat(dim, whole, placements)
        case Fresh(uniform):
            return _fresh(whole, local, degree, uniform=uniform)
        case Write():
            return _write(placements)
        case Same():
            return _same(whole, placements)
        case _:
            assert_never(meaning)


def _other_count(whole: Call, local: Call) -> Problem:
    return Problem(
        "TP202",
        f"{name(whole)} makes {len(local.results)} tensors on a rank and {len(whole.results)} on a single device",
        "a part size of the whole model is written into the code",
        str(len(local.results)),
        str(len(whole.results)),
    )


def _unlocked(meaning: Einsum) -> Einsum:
    return replace(meaning, locked=frozenset())


def _no_rule(whole: Call, placements: Placements) -> Placements | Problem:
    if all(isinstance(placement, Replicate) for placement in placements):
        return tuple(R for _ in whole.results)
    target = whole.op.target
    shown = ", ".join(map(str, placements))
    return Problem(
        "TP210",
        f"no rule tells what {target} does to ({shown})",
        "an op without a rule proves nothing",
        shown,
        "R, or a rule",
    )


def _einsum(meaning: Einsum, whole: Call, local: Call, placements: Placements, degree: int) -> Placements | Problem:
    partial = frozenset(i for i, placement in enumerate(placements) if isinstance(placement, Partial))
    sharded = {i: placement for i, placement in enumerate(placements) if isinstance(placement, Shard)}
    if not sharded:
        return _only_partial(meaning, whole, local, partial, degree)
    letters = {meaning.inputs[i][placement.dim] for i, placement in sharded.items()}
    blocks = {placement.blocks for placement in sharded.values()}
    letter = next(iter(letters))
    if letter is None or len(letters) > 1 or len(blocks) > 1:
        return _mixed(whole, placements)
    if letter in meaning.locked:
        return Problem(
            "TP206",
            f"{name(whole)} needs all of a dim that is sharded",
            meaning.why_locked,
            _shown(placements),
            "R",
            min(sharded),
        )
    for i, letters_of in enumerate(meaning.inputs):
        if (
            i not in sharded
            and letter in letters_of
            and whole.shapes[i][letters_of.index(letter)] > 1
            and i not in partial
        ):
            return _one_whole(whole, placements, i, sharded)
    if any(whole.shapes[i][p.dim] % degree for i, p in sharded.items()) and _grouped(whole, sharded):
        return _uneven_groups(whole, placements, degree)
    shards = next(iter(blocks))
    summed = all(letter not in output for output in meaning.outputs)
    if not summed:
        if partial:
            return _not_linear(whole, placements, partial)
        return tuple(Shard(output.index(letter), shards) if letter in output else R for output in meaning.outputs)
    if partial != meaning.added:
        return _not_linear(whole, placements, partial or meaning.added)
    return tuple(P for _ in meaning.outputs)


def _grouped(whole: Call, sharded: Mapping[int, Shard]) -> bool:
    """Whether operands have different sizes of one sharded dim: several query heads to a key head."""
    return len({whole.shapes[i][placement.dim] for i, placement in sharded.items()}) > 1


def _uneven_groups(whole: Call, placements: Placements, degree: int) -> Problem:
    return Problem(
        "TP201",
        f"{name(whole)} pairs groups that do not divide over {degree} ranks",
        "a shorter part of one operand no longer meets its own group of the other",
        _shown(placements),
        f"sizes that divide by {degree}",
    )


def _only_partial(
    meaning: Einsum, whole: Call, local: Call, partial: frozenset[int], degree: int
) -> Placements | Problem:
    if not partial:
        return _grown(meaning, whole, local, degree)
    if partial in meaning.linear:
        return tuple(P for _ in meaning.outputs)
    return _not_linear(whole, tuple(P if i in partial else R for i in range(len(whole.inputs))), partial)


def _grown(meaning: Einsum, whole: Call, local: Call, degree: int) -> Placements:
    """Whole inputs give a whole output, unless a broadcast dim took its size from a sharded tensor: any part of it is right."""
    if whole.op.target not in ("aten.expand", "aten.expand_as"):
        return tuple(R for _ in meaning.outputs)
    given = meaning.inputs[0]
    for dim, letter in enumerate(meaning.outputs[0]):
        if (
            letter not in given
            and local.results
            and local_shape_or_none(whole.results[0], Shard(dim), degree) == local.results[0]
        ):
            return (Shard(dim),)
    return (R,)


def _mixed(whole: Call, placements: Placements) -> Problem:
    return Problem(
        "TP203",
        f"the operands of {name(whole)} are sharded on dims that do not belong together",
        "ranks would combine parts of different places",
        _shown(placements),
        "one common dim",
    )


def _one_whole(whole: Call, placements: Placements, index: int, sharded: dict[int, Shard]) -> Problem:
    other = min(sharded)
    return Problem(
        "TP203",
        f"{name(whole)} combines a part of one operand with the whole of another",
        f"operand {index + 1} holds all of the dim of which operand {other + 1} holds a part, so ranks pair the wrong elements",
        _shown(placements),
        f"operand {index + 1} sharded on the same dim, or none",
        index,
    )


def _not_linear(whole: Call, placements: Placements, partial: frozenset[int]) -> Problem:
    return Problem(
        "TP204",
        f"{name(whole)} is given a partial sum",
        "f(sum of parts) is not the sum of f(part), and a whole addend is added once per rank",
        _shown(placements),
        "the sum reduced first",
        min(partial, default=None),
    )


def flat(shape: Shape, placement: Shard) -> tuple[int, int]:
    """A shard in row-major terms: how many runs there are before the sharded extent repeats, and the run's length."""
    outer = prod(shape[: placement.dim]) * placement.blocks
    return outer, prod(shape) // outer if outer else 0


def reshaped(shape: Shape, result: Shape, placement: Shard, degree: int) -> Shard | None:
    """Where a shard lies after a row-major reshape; None where a rank's part would not be a part of one dim."""
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


def keeps_dim(shape: Shape, result: Shape, before: Placement, after: Placement) -> bool:
    """Whether a reshape leaves what is sharded as it is, so that the last rank's part may be shorter: the same number of
    places, each as wide as before.
    """
    return (
        isinstance(before, Shard)
        and isinstance(after, Shard)
        and shape[before.dim] * after.blocks == result[after.dim] * before.blocks
    )


def _reshape(whole: Call, placement: Placement, degree: int) -> Placements | Problem:
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
    """Why a view fails that takes the number of heads from its tensor: a rank's part holds no whole number of them."""
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


def _narrow(meaning: Narrow, whole: Call, local: Call, placement: Placement, degree: int) -> Placements | Problem:
    count = len(meaning.starts)
    size = whole.shapes[0][meaning.dim]
    if not isinstance(placement, Shard) or placement.dim != meaning.dim:
        return tuple(placement for _ in range(count))
    block = size // placement.blocks
    if meaning.lengths == (size,):
        return (placement,)
    if any(number % block for number in (*meaning.starts, *meaning.lengths)):
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
    return tuple(Shard(meaning.dim, length // block) for length in meaning.lengths)


def _offsets(whole: Call, placement: Placement) -> Problem:
    return Problem(
        "TP203",
        f"{name(whole)} uses global offsets on a sharded dim",
        "the same offset means another place in a rank's part",
        str(placement),
        "offsets taken from the local size",
    )


def _concat(dim: int, whole: Call, placements: Placements) -> Placements | Problem:
    full = [i for i, shape in enumerate(whole.shapes) if prod(shape)]
    kinds = {placements[i] for i in full}
    if len(kinds) <= 1 and not any(isinstance(k, Shard) and k.dim == dim for k in kinds):
        return (next(iter(kinds), R),)
    shards = [p for i in full if isinstance(p := placements[i], Shard) and p.dim == dim]
    sizes = {whole.shapes[i][dim] // p.blocks for i in full if isinstance(p := placements[i], Shard)}
    if len(shards) == len(full) and len(sizes) == 1:
        return (Shard(dim, sum(shard.blocks for shard in shards)),)
    odd = next((i for i in full if isinstance(placements[i], Replicate)), None)
    return Problem(
        "TP203",
        "the parts of a concatenation lie differently",
        "one tensor has one placement",
        _shown(placements),
        "all alike",
        odd,
    )


def _fresh(whole: Call, local: Call, degree: int, *, uniform: bool) -> Placements | Problem:
    shape, part = whole.results[0], local.results[0] if local.results else whole.results[0]
    if shape == part:
        return (R,)
    for dim in range(len(shape)):
        if uniform and len(part) == len(shape) and local_shape_or_none(shape, Shard(dim), degree) == part:
            return (Shard(dim),)
    return Problem(
        "TP203",
        f"{name(whole)} makes {list(part)} on a rank and {list(shape)} on a single device",
        "counting from zero on every rank gives every rank the first part",
        str(list(part)),
        f"this rank's part of {list(shape)}",
    )


def local_shape_or_none(shape: Shape, placement: Placement, degree: int) -> Shape | None:
    """`local_shape`, or None where the dim does not divide."""
    try:
        return local_shape(shape, placement, degree)
    except ValueError:
        return None


def _write(placements: Placements) -> Placements | Problem:
    base, view = placements
    if base == view or (isinstance(base, Shard) and isinstance(view, Shard)):
        return (base,)
    return Problem(
        "TP203",
        "a view is written to with another placement than its base",
        "one tensor has one placement",
        f"{base}, {view}",
        "alike",
        1,
    )


def _same(whole: Call, placements: Placements) -> Placements | Problem:
    for index, placement in enumerate(placements):
        if not isinstance(placement, Replicate):
            code = "TP204" if isinstance(placement, Partial) else "TP206"
            return Problem(
                code, f"a layer is given {placement}", "a layer takes whole inputs", str(placement), "R", index
            )
    return tuple(R for _ in whole.results)


def _shapes_agree(whole: Call, local: Call, placements: Placements, degree: int) -> Problem | None:
    for shape, part, placement in zip(whole.results, local.results, placements, strict=True):
        needed = local_shape_or_none(shape, placement, degree)
        if needed != part:
            return Problem(
                "TP202",
                f"{name(whole)} makes {list(part)} on a rank",
                "a size of the whole model is written into the code, so a rank's part is folded into another shape",
                str(list(part)),
                f"{list(needed) if needed else 'an even part'} ({placement} of {list(shape)})",
            )
    return None


def _constants_agree(whole: Call, local: Call) -> Problem | None:
    if any(part in whole.op.target for part in _SIZES_FREE):
        return None
    given = [_told(op) for op in (whole.op, local.op)]
    for ours, theirs in zip(*map(_plain, given), strict=False):
        if ours != theirs:
            return Problem(
                "TP209",
                f"{name(whole)} uses {theirs} on a rank",
                "a constant was taken from a local size",
                str(theirs),
                str(ours),
            )
    return None


def _told(op: Op) -> tuple[Arg, ...]:
    """The arguments that shapes do not tell."""
    match op.target:
        case "aten.convolution":  # how many groups it has follows from its shapes: torch refuses any other number
            return op.args[:8]
        case "aten.full" | "aten.new_full":
            return op.args[-1:]
        case _:
            return op.args


def _plain(args: tuple[Arg, ...]) -> list[Arg]:
    found: list[Arg] = []
    for arg in args:
        if isinstance(arg, tuple):
            found += _plain(arg)
        elif not isinstance(arg, Ref):
            found.append(arg)
    return found


def name(call: Call) -> str:
    """An op by its bare name."""
    return call.op.target.rpartition(".")[2]


def _shown(placements: Placements) -> str:
    return ", ".join(map(str, placements))
