"""Why an op of one rank's program does not follow the single device's, and the words of saying so."""

from dataclasses import dataclass

from shardproof.planner.ir.graph import Shape
from shardproof.planner.ir.placement import Placement, local_shape
from shardproof.planner.propagation.semantics import Call


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


def name(call: Call) -> str:
    """An op by its bare name."""
    return call.op.target.rpartition(".")[2]


def shown(placements: Placements) -> str:
    """Placements as messages write them."""
    return ", ".join(map(str, placements))


def local_shape_or_none(shape: Shape, placement: Placement, degree: int) -> Shape | None:
    """`local_shape`, or None where the dim does not divide."""
    try:
        return local_shape(shape, placement, degree)
    except ValueError:
        return None
