"""The programs of pipeline stages against the program of the whole model: does each compute its part, every op of it once?

Values of all programs are numbered alike (`planner.ir.numbering`); what one stage sends has the numbers of what the next one
receives. Every value that a stage sends must have the number that it has in the whole program. How the stages are made (our own
stages, a client's runtime) is the caller's knowledge, and so is the finding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shardproof.planner.ir.graph import Graph, Op, Ref
from shardproof.planner.ir.numbering import Numbered, Numbers, first_new, numbered


@dataclass(frozen=True, slots=True)
class StageProgram:
    """One stage, traced.

    `own` are the layers that it runs, `received` its inputs for what the stage before sent, in that order, `sent` the values of
    its graph that it gives; `absent` are modules that answer with zeros.
    """

    graph: Graph
    own: range | None
    received: tuple[str, ...]
    sent: tuple[int, ...]
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A value that a stage sends is not the one that is wanted: `got` in its own graph, `wanted` in the whole one."""

    ran: Numbered
    got: int
    wanted: int


class StageComparison:
    """Stages of one model, compared one after the other with the whole program.

    `carried` are the numbers of what the last stage sent. `stack` is the path of the list of layers; with None, the ops inside
    layers count one by one.
    """

    def __init__(self, whole: Numbered, stack: str | None, carried: Sequence[int] = ()) -> None:
        self.whole, self.stack, self.carried = whole, stack, tuple(carried)

    @staticmethod
    def of(graph: Graph, stack: str, numbers: Numbers | None = None) -> "StageComparison":
        """A comparison with a whole program that is not numbered yet, by default in numbers of its own."""
        return StageComparison(numbered(graph, numbers or Numbers(), stack=stack), stack)

    def run(self, stage: StageProgram) -> Numbered:
        """Number the values of the next stage; what it sends is carried on."""
        ran = numbered(
            stage.graph,
            self.whole.numbers,
            stack=self.stack,
            own=stage.own,
            given=dict(zip(stage.received, self.carried, strict=False)),
            absent=stage.absent,
        )
        self.carried = tuple(ran.number[value] for value in stage.sent)
        return ran

    def mismatch(self, stage: StageProgram, wanted: Sequence[int]) -> Mismatch | None:
        """Run the next stage: the first value that it sends and that is not the one of the whole graph that is `wanted`."""
        ran = self.run(stage)
        for got, value in zip(stage.sent, wanted, strict=False):
            if self.whole.number[value] != ran.number[got]:
                return Mismatch(ran, got, value)
        return None

    def numbers_of(self, values: Sequence[int]) -> tuple[int, ...]:
        """The numbers of values of the whole graph."""
        return tuple(self.whole.number[value] for value in values)

    def explained(self, mismatch: Mismatch) -> tuple[Op | None, bool]:
        """The first op that makes a value another one, and whether the stage runs it besides (else: does not run it)."""
        extra = first_new(mismatch.ran, mismatch.got, self.whole)
        return extra or first_new(self.whole, mismatch.wanted, mismatch.ran), extra is not None


def layer_code(graph: Graph, layer: str) -> list[tuple[str, str, object]]:
    """The ops of one layer, as (module inside it, target, plain arguments); those of the layer that stands for it."""
    while (module := graph.module_of.get(layer)) is not None and module.repeats is not None:
        layer = module.repeats
    return [
        (op.module.removeprefix(layer), op.target, (_plain(op.args), _plain(op.kwargs)))
        for op in graph.ops
        if f"{op.module}.".startswith(f"{layer}.")
    ]


def _plain(arg: object) -> object:
    """An argument with every tensor left blank."""
    if isinstance(arg, Ref):
        return "tensor"
    return tuple(map(_plain, arg)) if isinstance(arg, tuple) else str(arg)


def hidden_states_into(graph: Graph, layer: str) -> int:
    """The hidden states that the layer at this path is given in its first call: its first tensor."""
    return next(call.arguments[0][1] for call in graph.calls if call.module == layer)
