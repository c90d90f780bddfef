"""What two related programs are on the way: pairs of ops, placements found so far, and where the relation broke."""

from dataclasses import dataclass, field

from shardproof.planner.ir.graph import Graph, Op, Shape
from shardproof.planner.ir.placement import Placement, R, Replicate, local_shape
from shardproof.planner.ir.styles import ParameterLayout
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.propagation.semantics import Call


@dataclass(frozen=True, slots=True)
class Stuck:
    """Where the relation breaks: `code` names the finding, `position` the op of the global graph (None: an output), `blame`
    the whole local value that should have been a part."""

    code: str
    message: str
    why: str
    found: str
    needed: str
    position: int | None = None
    module: str = ""
    op: Op | None = None
    entry: str | None = None
    blame: int | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """One op of the local program beside its op of the global one; a hook's op has none, nor has a slice of all there is."""

    local: Op
    whole: Op | None
    position: int


@dataclass
class State:
    """A walk over two programs: what it found of the local program's values so far."""

    whole: Graph
    local: Graph
    assigned: Assigned
    degree: int
    placements: dict[int, Placement] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)
    entry_of: dict[int, str] = field(default_factory=dict)
    stuck: list[Stuck] = field(default_factory=list)
    zeros: set[int] = field(default_factory=set)
    apart: int = 0
    """How many of `stuck` say that the programs do not run the same ops: these count also where nothing reads the op."""
    uniform: set[int] = field(default_factory=set)
    """Fresh tensors of which every element is alike."""


def settle(state: State, number: int, placement: Placement, whole: int, entry: str | None) -> None:
    """Say of a local value where it lies, which global value it is a part of, and the entry behind it."""
    state.placements[number] = placement
    state.same[number] = whole
    if entry:
        state.entry_of[number] = entry


def entry_behind(state: State, op: Op) -> str | None:
    """The entry behind an op: its own module's where that lays out parameters, else that of its first input that is not
    whole, else its own module's.
    """
    own = state.assigned.modules.get(op.module)
    if own is not None and own[0].layout is not ParameterLayout.KEEP:
        return own[1]
    for number in op.inputs:
        if not isinstance(state.placements.get(number, R), Replicate) and number in state.entry_of:
            return state.entry_of[number]
    return own[1] if own is not None else None


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


def placements_text(placements: Placements) -> str:
    """Placements as messages write them."""
    return ", ".join(map(str, placements))


def local_shape_or_none(shape: Shape, placement: Placement, degree: int) -> Shape | None:
    """`local_shape`, or None where the dim does not divide."""
    try:
        return local_shape(shape, placement, degree)
    except ValueError:
        return None
