"""The collectives that one rank issues, from its program: the kind, the module, and the number of elements. No torch.

Each action of a style's hook is an op `tp.*` (`planner.tracing.rank_program`). On real ranks (transformers 5.23.0,
distributed/tensor_parallel.py) `tp.reduce` is an all-reduce in the forward, `tp.gather` an all-gather in the forward, and
`tp.enter` and `tp.rope` are all-reduces of the gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from shardproof.planner.ir.graph import NO_GRADIENT, Graph, ModuleCall, Op, Ref
from shardproof.planner.propagation.backward import has_gradient


class Kind(StrEnum):
    ALL_REDUCE = "all-reduce"
    ALL_GATHER = "all-gather"


@dataclass(frozen=True, slots=True)
class Collective:
    """One call of a collective by one rank: `elements` is the number of elements that the rank contributes, `made` the
    number in the result, `width` the size of the result's last dim.

    If data decide the number of rows (the tokens that a mask selects), these numbers are for a representative number of
    rows, and `row` is the number of elements that one row contributes; else `row` is None.
    """

    kind: Kind
    module: str
    elements: int
    dtype: str
    backward: bool = False
    made: int = 0
    width: int = 0
    row: int | None = None


def collectives(local: Graph) -> tuple[Collective, ...]:
    """All collectives of one call of the model, in order, then those of its backward. Repeated layers count again."""
    return tuple(_Issuing(local).within(0, len(local.ops), set()))


def expanded(local: Graph) -> Iterator[Op]:
    """The ops of one call of the model; a repeated layer's are those of the layer that stands for it, again."""
    return _Issuing(local).ops(0, len(local.ops))


class _Issuing:
    """Facts of a program: its calls by module, the values that a gradient flows back to, and the values whose size data
    decide.
    """

    def __init__(self, local: Graph) -> None:
        self.local, self.back, self.chosen = local, gradient_flows_to(local), chosen_by_data(local)
        self.weights = {number for module in local.modules for _, number in module.parameters}
        self.calls: dict[str, list[ModuleCall]] = {}
        for call in local.calls:
            self.calls.setdefault(call.module, []).append(call)

    def within(self, start: int, stop: int, given: set[int]) -> Iterator[Collective]:
        """The collectives of a range of ops, if the values in `given` have gradients in addition to the weights. A repeated
        layer issues what the last call of the layer that stands for it would issue with its own arguments.
        """
        trained = self.weights | given
        for position, op in enumerate(self.local.ops[start:stop], start):
            if op.target == "repeat":
                yield from self._again(op, position, trained)
            else:
                yield from self._of(op, trained)
            trained |= _trained_by(self.local, op, trained)

    def ops(self, start: int, stop: int) -> Iterator[Op]:
        """The ops of a range, with repeated layers written out."""
        for position, op in enumerate(self.local.ops[start:stop], start):
            if op.target == "repeat":
                first = self.local.module_of[op.module].repeats
                assert first is not None
                yield from self.ops(*self._then(op, first, position, set())[:2])
            else:
                yield op

    def _of(self, op: Op, trained: set[int]) -> Iterator[Collective]:
        for found in _of(self.local, op):
            number = op.inputs[0]
            if not found.backward or (not op.constant and number in trained and self.back.issuperset(op.outputs)):
                last = self.local.values[number].shape[-1]
                yield replace(found, row=last) if number in self.chosen else found

    def _again(self, op: Op, position: int, trained: set[int]) -> Iterator[Collective]:
        first = self.local.module_of[op.module].repeats
        assert first is not None
        for found in self.within(*self._then(op, first, position, trained)):
            below = found.module == first or found.module.startswith(f"{first}.")
            yield replace(found, module=op.module + found.module.removeprefix(first)) if below else found

    def _then(self, op: Op, first: str, position: int, trained: set[int]) -> tuple[int, int, set[int]]:
        """For an op `repeat`: the range of ops of the last call of the layer that stands for it, and the arguments of that
        call for which the repeated layer's arguments have gradients.
        """
        mine = [call for call in self.calls.get(op.module, ()) if call.ran[0] <= position < call.ran[1]]
        then = [call for call in self.calls.get(first, ()) if call.ran[1] <= position]
        if mine and then:
            alike = zip(then[-1].arguments, mine[0].arguments, strict=True)
            return *then[-1].ran, {number for (_, number), (_, own) in alike if own in trained}
        # If code calls a layer's `forward` directly, no call is recorded.
        inside = [at for at, one in enumerate(self.local.ops[:position]) if f"{one.module}.".startswith(f"{first}.")]
        start, stop = (inside[0], inside[-1] + 1) if inside else (0, 0)
        return start, stop, {number for one in self.local.ops[start:stop] for number in one.inputs}


_PUT = ("aten.nonzero", "aten.masked_select")
"""Ops whose result has one row per true element of the input, as indexing by a mask has."""


def chosen_by_data(graph: Graph) -> set[int]:
    """The values whose size data decide: values selected by a mask, until they are written into a tensor of known size."""
    found: set[int] = set()
    for op in graph.ops:
        given = [graph.values[number] for number in op.inputs if number not in found]
        masked = op.target == "aten.index" and any(value.dtype in ("bool", "uint8") for value in given[1:])
        if op.target in _PUT or masked:
            found.update(op.outputs)
        elif len(given) < len(op.inputs):
            known = {value.shape for value in given}
            found.update(number for number in op.outputs if graph.values[number].shape not in known)
    return found


def gradient_flows_to(local: Graph) -> set[int]:
    """The values that a gradient of the outputs flows back to; it does not flow through indices or constants."""
    found = {number for _, number in local.outputs}
    for op in reversed(local.ops):
        if not _constant(op) and not found.isdisjoint(op.outputs):
            found.update(number for number in op.inputs if has_gradient(local.values[number].dtype))
    return found


def with_gradient(graph: Graph) -> set[int]:
    """The values that depend on a parameter, so that autograd gives them a gradient."""
    found = {number for module in graph.modules for _, number in module.parameters}
    for op in graph.ops:
        found |= _trained_by(graph, op, found)
    return found


def _trained_by(graph: Graph, op: Op, trained: set[int]) -> set[int]:
    """The outputs of an op that have a gradient; a repeated layer has weights although the op `repeat` does not list them."""
    if _constant(op) or (op.target != "repeat" and trained.isdisjoint(op.inputs)):
        return set()
    return {number for number in op.outputs if has_gradient(graph.values[number].dtype)}


def _constant(op: Op) -> bool:
    return op.constant or op.target in NO_GRADIENT


def _of(local: Graph, op: Op) -> Iterator[Collective]:
    match op.target, op.args:
        case "tp.reduce", (Ref(number), *_):
            yield _collective(local, op, number, Kind.ALL_REDUCE)
        case "tp.gather", (Ref(number), *_):
            yield _collective(local, op, number, Kind.ALL_GATHER)
        case "tp.enter", (Ref(number), *_):
            yield _collective(local, op, number, Kind.ALL_REDUCE, backward=True)
        case "tp.rope", (Ref(number), int(width)) if width:
            value = local.values[number]
            yield Collective(Kind.ALL_REDUCE, op.module, prod(value.shape[:-1]) * width, value.dtype, backward=True)
        case _:
            return


def _collective(local: Graph, op: Op, number: int, kind: Kind, *, backward: bool = False) -> Collective:
    value, made = local.values[number], local.values[op.outputs[0]].shape
    return Collective(kind, op.module, prod(value.shape), value.dtype, backward, prod(made), made[-1])
