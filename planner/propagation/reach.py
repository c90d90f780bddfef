"""Where code can use a sharded parameter. This depends on the client's hooks, not on placements."""

from collections.abc import Iterator
from dataclasses import dataclass

from shardproof.planner.ir.graph import STRIDED, Graph, Op
from shardproof.planner.ir.placement import Replicate
from shardproof.planner.ir.styles import Reach
from shardproof.planner.propagation.assign import Assigned


@dataclass(frozen=True, slots=True)
class Unreachable:
    """An op that reads a sharded parameter outside its style's reach: a distributed tensor meets plain tensors there, and
    torch raises.
    """

    op: Op
    parameter: str
    entry: str


def unreachable(local: Graph, assigned: Assigned) -> tuple[Unreachable, ...]:
    """Every sharded parameter that is read outside the reach of its module's style, with the first such op.

    For a tied parameter, the reach of any of the modules that hold it is enough.
    """
    holders: dict[int, list[str]] = {}
    for name, number in local.parameters.items():
        if not isinstance(assigned.parameters.get(name, (Replicate(), ""))[0], Replicate):
            holders.setdefault(number, []).append(name)
    return tuple(found for number, names in holders.items() for found in _first_outside(local, assigned, number, names))


def strided(local: Graph, assigned: Assigned) -> tuple[tuple[Op, str], ...]:
    """Linear layers whose sharded input has strides that allow no view as rows, so that training raises: the hook's op and
    the entry.
    """
    hooks = (op for op in local.ops if op.target == "tp.sharded" and STRIDED in op.args)
    return tuple((op, assigned.modules[op.module][1]) for op in hooks)


def _first_outside(local: Graph, assigned: Assigned, number: int, names: list[str]) -> Iterator[Unreachable]:
    for position in local.users.get(number, ()):
        op = local.ops[position]
        if op.target != "repeat" and not any(_within(assigned, name.rpartition(".")[0], op.module) for name in names):
            yield Unreachable(op, names[0], assigned.parameters[names[0]][1])
            return


def _within(assigned: Assigned, owner: str, module: str) -> bool:
    style = assigned.modules.get(owner)
    reach = style[0].reach if style is not None else Reach.NOWHERE
    return (reach is not Reach.NOWHERE and module == owner) or (
        reach is Reach.BELOW and (not owner or module.startswith(f"{owner}."))
    )
