"""One op, two programs: from the placements of the inputs to those of the outputs, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import assert_never

from shardproof.planner.ir.placement import P, Partial, R, Replicate, Shard, packed
from shardproof.planner.propagation.forward.call_agreement import arguments_agree, dtypes_agree, shapes_agree
from shardproof.planner.propagation.forward.relation import (
    Placements,
    Problem,
    local_shape_or_none,
    name,
    placements_text,
)
from shardproof.planner.propagation.forward.views import narrow, reshape
from shardproof.planner.propagation.rules.registry import semantics
from shardproof.planner.propagation.semantics import Call, Concat, Einsum, Fresh, Narrow, Reshape, Same, Write


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
        return _other_count(whole, local, degree)
    result = related(whole, local, placements, degree, masked=masked)
    if isinstance(result, Problem):
        return result
    return (
        shapes_agree(whole, local, result, degree)
        or arguments_agree(whole, local)
        or dtypes_agree(whole, local)
        or result
    )


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
            return reshape(whole, placements[0], degree)
        case Narrow():
            return narrow(meaning, whole, local, placements[0], degree)
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


def _other_count(whole: Call, local: Call, degree: int) -> Problem:
    if len(local.results) * degree == len(whole.results) and {*local.results} == {*whole.results}:
        # A loop over the parts of a shard may do to them what the whole loop does to the same parts.
        return Problem(
            "TP210",
            f"{name(whole)} makes {len(local.results)} parts on a rank and {len(whole.results)} on a single device",
            "a rank's loop over its own parts is not compared with the whole loop",
            str(len(local.results)),
            "a view of the parts as a dim, without a loop",
        )
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
    blocks = {(placement.blocks, placement.parts) for placement in sharded.values()}
    letter = next(iter(letters))
    if letter is None or len(letters) > 1 or len(blocks) > 1:
        return _mixed(whole, placements)
    if letter in meaning.locked:
        return _locked(meaning, whole, placements, min(sharded))
    needing = (i for i, letters_of in enumerate(meaning.inputs) if i not in sharded and i not in partial)
    if (odd := next((i for i in needing if _has_all_of(letter, meaning, whole, i)), None)) is not None:
        return _one_whole(whole, placements, odd, sharded)
    if _grouped(whole, sharded) and any(p.parts for p in sharded.values()):
        return _mixed(whole, placements)
    if _grouped(whole, sharded) and any(whole.shapes[i][p.dim] % degree for i, p in sharded.items()):
        return _uneven_groups(whole, placements, degree)
    return _of_shards(meaning, whole, placements, partial, letter, next(iter(sharded.values())))


def _locked(meaning: Einsum, whole: Call, placements: Placements, blame: int) -> Problem:
    return Problem(
        "TP210" if meaning.near else "TP206",
        f"{name(whole)} needs all of a dim that is sharded",
        meaning.why_locked,
        placements_text(placements),
        "R",
        blame,
    )


def _has_all_of(letter: str, meaning: Einsum, whole: Call, index: int) -> bool:
    """Whether an operand that is not sharded has the sharded dim, and is not broadcast over it."""
    letters = meaning.inputs[index]
    return letter in letters and whole.shapes[index][letters.index(letter)] > 1


def _of_shards(
    meaning: Einsum, whole: Call, placements: Placements, partial: frozenset[int], letter: str, like: Shard
) -> Placements | Problem:
    """The results of operands that are sharded alike: shards where the dim stays, partial sums where it is summed over."""
    summed = all(letter not in output for output in meaning.outputs)
    if not summed:
        if partial:
            return _not_linear(whole, placements, partial)
        return tuple(like.to(output.index(letter)) if letter in output else R for output in meaning.outputs)
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
        placements_text(placements),
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
    """Whole inputs give a whole output, unless a broadcast or tiled dim took its size from a sharded tensor: a part of it is
    right anywhere, for each begins with a whole tile.
    """
    if whole.op.target not in ("aten.expand", "aten.expand_as", "aten.repeat"):
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
        placements_text(placements),
        "one common dim",
    )


def _one_whole(whole: Call, placements: Placements, index: int, sharded: dict[int, Shard]) -> Problem:
    other = min(sharded)
    return Problem(
        "TP203",
        f"{name(whole)} combines a part of one operand with the whole of another",
        f"operand {index + 1} holds all of the dim of which operand {other + 1} holds a part, so ranks pair the wrong elements",
        placements_text(placements),
        f"operand {index + 1} sharded on the same dim, or none",
        index,
    )


def _not_linear(whole: Call, placements: Placements, partial: frozenset[int]) -> Problem:
    return Problem(
        "TP204",
        f"{name(whole)} is given a partial sum",
        "f(sum of parts) is not the sum of f(part), and a whole addend is added once per rank",
        placements_text(placements),
        "the sum reduced first",
        min(partial, default=None),
    )


def _concat(dim: int, whole: Call, placements: Placements) -> Placements | Problem:
    full = [i for i, shape in enumerate(whole.shapes) if prod(shape)]
    kinds = {placements[i] for i in full}
    if len(kinds) <= 1 and not any(isinstance(k, Shard) and k.dim == dim for k in kinds):
        return (next(iter(kinds), R),)
    shards = [p for i in full if isinstance(p := placements[i], Shard) and p.dim == dim]
    if len(shards) == len(full):
        sizes = [shard.block_sizes(whole.shapes[i][dim]) for i, shard in zip(full, shards, strict=True)]
        known = [size for size in sizes if size is not None]
        if len(known) == len(sizes):
            return (packed(dim, [size for each in known for size in each]),)
    odd = next((i for i in full if isinstance(placements[i], Replicate)), None)
    return Problem(
        "TP203",
        "the parts of a concatenation lie differently",
        "one tensor has one placement",
        placements_text(placements),
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
    # A rank's identity matrix is a block of the diagonal: right in a product with a shard, for which there is no rule.
    return Problem(
        "TP210" if whole.op.target == "aten.eye" else "TP203",
        f"{name(whole)} makes {list(part)} on a rank and {list(shape)} on a single device",
        "counting from zero on every rank gives every rank the first part",
        str(list(part)),
        f"this rank's part of {list(shape)}",
    )


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
