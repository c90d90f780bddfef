"""Pair the ops of one rank's program with those of the single-device program, and say where the two part."""

from shardproof.planner.ir.graph import Op
from shardproof.planner.ir.placement import Partial, R, Replicate, Unknown
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.propagation.forward.operands import same_constant
from shardproof.planner.propagation.forward.relation import Pair, State, Stuck


def align(state: State) -> tuple[Pair, ...]:
    """Pair the ops of the two programs; where they part, say so and stop there."""
    pairs: list[Pair] = []
    position = 0
    for op in state.local.ops:
        if op.target.startswith("tp."):
            pairs.append(Pair(op, None, position))
            continue
        whole = state.whole.ops[position] if position < len(state.whole.ops) else None
        if op.target == "aten.slice" and (whole is None or (whole.target, whole.source) != (op.target, op.source)):
            pairs.append(
                Pair(op, None, position)
            )  # it cuts nothing off on a single device, where torch then leaves it out
            continue
        if whole is None or whole.target != op.target or not _same_place(op, whole, state.assigned):
            state.stuck.append(diverged(op, whole, position))
            return tuple(pairs)
        pairs.append(Pair(op, whole, position))
        position += 1
    return tuple(pairs)


def _same_place(op: Op, whole: Op, assigned: Assigned) -> bool:
    """Whether two ops run in one module; a module whose `forward` is called by itself is told only where a style hooks it."""
    return op.module == whole.module or (op.module in assigned.modules and op.module.startswith(f"{whole.module}."))


def _other_outputs(state: State, name: str = "", local: int | None = None) -> Stuck:
    """The outputs are others than on a single device, or the one called `name` is another value."""
    made = state.local.producer.get(local) if local is not None else None
    op = state.local.ops[made] if made is not None else None
    ours, wanted = (", ".join(name for name, _ in graph.outputs) for graph in (state.local, state.whole))
    return Stuck(
        "TP211",
        f"a rank gives another value as the output {name}"
        if name
        else "a rank gives other outputs than a single device",
        why="the forward branches on a size that the plan changes",
        found=f"another value for {name}" if name else ours,
        needed=f"{name} of the single device" if name else wanted,
        module=op.module if op else "",
        op=op,
    )


def diverged(local: Op | None, whole: Op | None, position: int) -> Stuck:
    """The programs part at an op; None where one of them has ended."""
    at = local or whole
    return Stuck(
        "TP211",
        "one rank runs other ops than the single device",
        why="the forward branches on a size that the plan changes",
        found=f"{local.target} in {local.module}" if local else "nothing more",
        needed=f"{whole.target} in {whole.module}" if whole else "nothing more",
        position=position,
        module=at.module if at else "",
        op=at,
    )


def check_outputs(state: State) -> None:
    """Say of each output that is another value than on a single device, or that is not whole."""
    if [name for name, _ in state.local.outputs] != [name for name, _ in state.whole.outputs]:
        state.stuck.append(_other_outputs(state))
    for (name, local), (_, whole) in zip(state.local.outputs, state.whole.outputs, strict=False):
        if state.same.get(local, whole) != whole or (
            local not in state.same and not same_constant(state, local, whole)
        ):
            state.stuck.append(_other_outputs(state, name, local))
        placement = state.placements.get(local, R)
        assert state.stuck or not isinstance(placement, Unknown), "a value became unknown, and nothing said so"
        if isinstance(placement, Replicate | Unknown):
            continue
        code = "TP204" if isinstance(placement, Partial) else "TP206"
        made = state.local.producer.get(local)
        op = state.local.ops[made] if made is not None else None
        state.stuck.append(
            Stuck(
                code,
                f"the model's output {name} is {placement}",
                why="the caller takes the output as whole",
                found=f"{placement}, {list(state.local.values[local].shape)}",
                needed=f"R, {list(state.whole.values[whole].shape)}",
                module=op.module if op else "",
                op=op,
                entry=state.entry_of.get(local),
            )
        )
