"""The collectives that one rank issues, read off its program: what, where, and how many elements. No torch.

A hook of a style is one op `tp.*` (`planner.frontend.local`); what it does on real ranks is `transformers/distributed/
tensor_parallel.py` (5.23.0): `tp.reduce` sums forward, `tp.gather` gathers forward, `tp.enter`, `tp.rope` sum the gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from planner.ir.graph import Graph, Op, Ref
from planner.sharding.gradients import CONSTANT, has_gradient


class Kind(StrEnum):
    ALL_REDUCE = "all-reduce"
    ALL_GATHER = "all-gather"


@dataclass(frozen=True, slots=True)
class Collective:
    """One call of a collective by one rank: `elements` is what the rank puts in."""

    kind: Kind
    module: str
    elements: int
    dtype: str
    backward: bool = False


def collectives(local: Graph) -> tuple[Collective, ...]:
    """All that one call of the model issues, in order; those of the backward pass after it. Repeated layers count again."""
    found_back = reached(local)
    owned = [
        (op, found)
        for op in local.ops
        for found in _of(local, op)
        if not found.backward or found_back.issuperset(op.outputs)
    ]
    return tuple(_spread(local, owned))


def reached(local: Graph) -> set[int]:
    """The values that a gradient of the outputs flows back to: none goes through indices, nor through what is constant."""
    found = {number for _, number in local.outputs}
    for op in reversed(local.ops):
        if op.target not in CONSTANT and not found.isdisjoint(op.outputs):
            found.update(number for number in op.inputs if has_gradient(local.values[number].dtype))
    return found


def with_gradient(graph: Graph) -> set[int]:
    """The values that a gradient can flow through to a parameter."""
    found = {number for module in graph.modules for _, number in module.parameters}
    for op in graph.ops:
        if op.target not in CONSTANT and not found.isdisjoint(op.inputs):
            found.update(number for number in op.outputs if has_gradient(graph.values[number].dtype))
    return found


def _spread(local: Graph, owned: list[tuple[Op, Collective]]) -> Iterator[Collective]:
    """A layer that repeats another issues what that one issued, its own repeats included."""
    issued: list[Collective] = []
    for op in local.ops:
        new = [found for owner, found in owned if owner is op]
        if op.target == "repeat":
            first = local.module_of[op.module].repeats
            assert first is not None
            below = [found for found in issued if found.module == first or found.module.startswith(f"{first}.")]
            new += [replace(found, module=op.module + found.module.removeprefix(first)) for found in below]
        issued += new
        yield from new


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
    value = local.values[number]
    return Collective(kind, op.module, prod(value.shape), value.dtype, backward)
