"""What an op does to the dims of its tensors: one description, used by the proof, the groups, the costs and the test of the
rules.

Most ops are an `Einsum`: every dim has a letter, and dims of several tensors with the same letter are one dim. The other ops
rearrange dims (`Reshape`, `Narrow`, `Concat`) or make constants (`Fresh`).
"""

from dataclasses import dataclass
from typing import TypeAlias

from shardproof.planner.ir.graph import Arg, Graph, Op, Ref, Shape

Letters: TypeAlias = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Einsum:
    """Dims by letter. None is a dim that is broadcast or has no counterpart.

    A letter that is missing in an output is summed over there. The op mixes elements along `locked` letters (softmax, norms,
    indices), so these dims must be whole. `linear` lists the sets of inputs in which the op is jointly linear: if exactly
    the inputs of one set are partial sums, the output is a partial sum. `added` inputs are added to the product (a bias).
    """

    inputs: tuple[Letters, ...]
    outputs: tuple[Letters, ...]
    locked: frozenset[str] = frozenset()
    linear: tuple[frozenset[int], ...] = ()
    added: frozenset[int] = frozenset()
    why_locked: str = "the op mixes values along this dim"
    near: bool = False
    """Along `locked` dims a rank's part may be enough (the op mixes only what lies beside each other, say): undecided."""


@dataclass(frozen=True, slots=True)
class Reshape:
    """A row-major reshape of the first input."""


@dataclass(frozen=True, slots=True)
class Narrow:
    """Output `i` has `lengths[i]` elements of dim `dim` of the first input, from element `starts[i]` on."""

    dim: int
    starts: tuple[int, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """The inputs concatenated along `dim`."""

    dim: int


@dataclass(frozen=True, slots=True)
class Fresh:
    """A new constant; `uniform` if all elements are equal, so that a rank's smaller one is right for a shard."""

    uniform: bool


@dataclass(frozen=True, slots=True)
class Write:
    """The first input after a write to one of its views, the second input."""


@dataclass(frozen=True, slots=True)
class Same:
    """The op `repeat` of a layer: outputs are replicated, as those of the layer that stands for it."""


Semantics: TypeAlias = Einsum | Reshape | Narrow | Concat | Fresh | Write | Same


@dataclass(frozen=True, slots=True)
class Call:
    """One op of a graph, with the shapes and numbers that a rule needs."""

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
        """The shape of a tensor argument."""
        if not isinstance(arg, Ref):
            raise ValueError(f"{self.op.target} was given {arg!r} where a tensor was expected.")
        return self.graph.values[arg.value].shape

    def number(self, position: int, name: str, default: int) -> int:
        """An integer argument."""
        value = self.op.arg(position, name, default)
        return value if isinstance(value, int) else default

    def numbers(self, position: int, name: str) -> tuple[int, ...]:
        """An argument that is an integer or a list of integers, as a tuple; empty if it is missing."""
        value = self.op.arg(position, name)
        if isinstance(value, tuple):
            return tuple(item for item in value if isinstance(item, int))
        return (value,) if isinstance(value, int) else ()
