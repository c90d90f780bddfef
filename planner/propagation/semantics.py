"""What an op does to the dims of its tensors: the one description that propagation, groups, costs and the truth test read.

Most ops are an `Einsum`: every dim carries a letter; a letter shared by tensors is one dim that they have in common. The
rest rearrange dims (`Reshape`, `Narrow`, `Concat`) or make constants (`Fresh`).
"""

from dataclasses import dataclass
from typing import TypeAlias

from shardproof.planner.ir.graph import Arg, Graph, Op, Ref, Shape

Letters: TypeAlias = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Einsum:
    """Dims by letter. `None` is a dim that is broadcast, or that has no counterpart.

    A letter of the inputs that is missing in an output is summed over there. `locked` letters mix along the dim (softmax,
    norms, indices), so it must be whole. `linear` names the sets of inputs in which the op is jointly linear: when exactly
    those are partial sums, so is the output. `added` inputs are added to the product (a bias).
    """

    inputs: tuple[Letters, ...]
    outputs: tuple[Letters, ...]
    locked: frozenset[str] = frozenset()
    linear: tuple[frozenset[int], ...] = ()
    added: frozenset[int] = frozenset()
    why_locked: str = "the op mixes values along this dim"


@dataclass(frozen=True, slots=True)
class Reshape:
    """Row-major reinterpretation of the first input's dims."""


@dataclass(frozen=True, slots=True)
class Narrow:
    """Output `i` is `lengths[i]` elements of `dim` of the first input from `starts[i]` on."""

    dim: int
    starts: tuple[int, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """The inputs one after the other along `dim`."""

    dim: int


@dataclass(frozen=True, slots=True)
class Fresh:
    """A constant made on the spot; `uniform` where every element is alike, so that any part of it is right at its size."""

    uniform: bool


@dataclass(frozen=True, slots=True)
class Write:
    """The first input after one of its views (the second) was written to."""


@dataclass(frozen=True, slots=True)
class Same:
    """Outputs lie as the op `repeat` of another layer says: whole."""


Semantics: TypeAlias = Einsum | Reshape | Narrow | Concat | Fresh | Write | Same


@dataclass(frozen=True, slots=True)
class Call:
    """One op of a graph with what a rule asks of it."""

    graph: Graph
    op: Op

    @property
    def inputs(self) -> tuple[int, ...]:
        """The value numbers used, in argument order."""
        return self.op.inputs

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of the inputs."""
        return tuple(self.graph.values[number].shape for number in self.op.inputs)

    @property
    def results(self) -> tuple[Shape, ...]:
        """The shapes of the outputs."""
        return tuple(self.graph.values[number].shape for number in self.op.outputs)

    def shape(self, arg: Arg) -> Shape:
        """The shape of an argument that is a tensor."""
        if not isinstance(arg, Ref):
            raise ValueError(f"{self.op.target} was given {arg!r} where a tensor was expected.")
        return self.graph.values[arg.value].shape

    def number(self, position: int, name: str, default: int) -> int:
        """An integer argument."""
        value = self.op.arg(position, name, default)
        return value if isinstance(value, int) else default

    def numbers(self, position: int, name: str) -> tuple[int, ...]:
        """An argument that is an integer or a list of them; empty where it is missing."""
        value = self.op.arg(position, name)
        if isinstance(value, tuple):
            return tuple(item for item in value if isinstance(item, int))
        return (value,) if isinstance(value, int) else ()
