"""TP201: a degree that does not divide."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.planner.ir.placement import Placement
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP201",
        name="dim-does-not-divide",
        severity=Severity.ERROR,
        what="A dim that the plan shards does not divide into as many equal parts as there are ranks.",
        why="Heads, key-value heads and packed blocks are whole things: n of them give each of t ranks n "
        "/ t, and a remainder puts a cut inside one. The forward then raises, or pairs a query with "
        "another head's key.",
        use_instead="A degree that `plan suggest MODEL` lists as legal, or a plan that leaves this part whole.",
        fix_safety="No edit is offered: it is the degree that does not fit.",
        invalid=(Example(note="32 heads on 3 ranks.", model="llama", degree=3),),
        valid=(Example(note="32 heads on 4 ranks.", model="llama", degree=4),),
    )
)


def does_not_divide(
    parameter: str, entry: str | None, *, shape: Sequence[int], placement: Placement, degree: int
) -> Finding:
    """A parameter of this (whole) shape has no equal part for each of `degree` ranks."""
    return Finding(
        "TP201",
        Severity.ERROR,
        f"{parameter} does not divide over {degree} ranks",
        Place(entry, parameter.rpartition(".")[0]),
        why="every rank holds an equal part of each block",
        found=f"{list(shape)} at {placement}",
        needed="a degree that divides the dim, or another style",
    )


def uneven_part_fails(parameter: str, place: Place, *, shape: Sequence[int], degree: int, error: str) -> Finding:
    """The forward raises on the uneven part of a parameter of this (whole) shape."""
    return Finding(
        "TP201",
        Severity.ERROR,
        f"{parameter} does not divide over {degree} ranks, and the forward cannot take the uneven part ({error})",
        place,
        why="a rank's boundary falls inside a head or a block",
        found=f"{list(shape)} over {degree} ranks",
        needed="a degree that divides the number of heads or blocks",
    )


def experts_do_not_divide(module: str, entry: str, *, count: int, degree: int) -> Finding:
    """A module with `count` experts, which `degree` ranks cannot share evenly."""
    return Finding(
        "TP201",
        Severity.ERROR,
        f"The {count} experts of {module} do not divide over {degree} ranks.",
        Place(entry, module),
        why="every rank holds as many experts as any other",
        found=str(count),
        needed=f"a multiple of {degree}",
    )
