"""How the parameters, the inputs and the constants of one rank's program lie, and with them the operands of an op."""

from shardproof.planner.ir.graph import UNRECORDED, Op
from shardproof.planner.ir.placement import P, Partial, Placement, R, Replicate, Shard, Unknown
from shardproof.planner.ir.plan import generic
from shardproof.planner.ir.styles import Before
from shardproof.planner.propagation.forward.relation import State, Stuck


def place_inputs(state: State) -> None:
    """Place the parameters, each where its entry puts it, and the inputs, which every rank has whole."""
    aliases: dict[int, set[Placement]] = {}
    for name, number in state.local.parameters.items():
        placement, entry = state.assigned.parameters.get(name, (R, ""))
        owner, _, own = name.rpartition(".")
        style = state.assigned.modules.get(owner)
        summed = style is not None and style[0].before in (Before.TAKE_SHARDED, Before.SPLIT)
        if own == "bias" and style is not None and summed and placement == R:
            # It is added once, after the sum: as if every rank added its share of it.
            placement, entry = P, style[1]
        if name in state.whole.parameters:
            state.placements.setdefault(number, placement)
            state.same.setdefault(number, state.whole.parameters[name])
            aliases.setdefault(state.whole.parameters[name], set()).add(placement)
            if entry:
                state.entry_of.setdefault(number, entry)
    for number, placements in aliases.items():
        if len(placements) > 1:
            _tied_apart(state, [n for n, v in state.whole.parameters.items() if v == number])
    for (_, local), (_, whole) in zip(state.local.inputs, state.whole.inputs, strict=True):
        state.placements[local], state.same[local] = R, whole


def _tied_apart(state: State, aliases: list[str]) -> None:
    given = {alias: state.assigned.parameters.get(alias, (R, "")) for alias in aliases}
    sharded = next(alias for alias, (placement, _) in given.items() if not isinstance(placement, Replicate))
    other = next(alias for alias in aliases if given[alias][0] != given[sharded][0])
    state.stuck.append(
        Stuck(
            "TP212",
            f"{sharded} and {other} are one tied parameter, placed differently",
            why="a tied parameter is one tensor, and it can lie in one way only",
            found=f"{sharded} at {given[sharded][0]}, {other} at {given[other][0]}",
            needed=f"{other} at {given[sharded][0]} too",
            module=other.rpartition(".")[0],
            entry=given[other][1] or generic(other.rpartition(".")[0]),
        )
    )


def operand_placements(state: State, local: Op, whole: Op) -> tuple[Placement, ...]:
    """The placements of an op's inputs; an input that stands for another global value than it should is unknown."""
    found: list[Placement] = []
    for number, expected in zip(local.inputs, whole.inputs, strict=False):
        if number not in state.placements:
            _place_constant(state, local, number, expected)
        if state.same[number] != expected:
            state.stuck.append(crossed(local, whole))
            found.append(Unknown(f"{local.target} is fed another value than on a single device"))
        else:
            found.append(state.placements[number])
    if any(isinstance(placement, Partial) for placement in found):
        # Zero is the sum of zeros: a fresh accumulator joins a partial sum.
        found = [
            P if n in state.zeros and isinstance(p, Replicate) else p for n, p in zip(local.inputs, found, strict=True)
        ]
    return tuple(_as_others_lie(state, local, found))


def _as_others_lie(state: State, local: Op, found: list[Placement]) -> list[Placement]:
    """A fresh tensor of which every element is alike is a part of the whole one however that is cut: it lies as the others do."""
    blocks = {
        (p.blocks, p.parts)
        for n, p in zip(local.inputs, found, strict=False)
        if isinstance(p, Shard) and n not in state.uniform
    }
    if len(blocks) != 1:
        return found
    ((count, parts),) = blocks
    return [
        Shard(p.dim, count, parts) if isinstance(p, Shard) and n in state.uniform else p
        for n, p in zip(local.inputs, found, strict=False)
    ]


def _place_constant(state: State, local: Op, number: int, expected: int) -> None:
    """A value that was there before the forward, or that was made where nobody recorded it: whole where both programs have the
    same one, else unknown.
    """
    here, there = state.local.values[number], state.whole.values[expected]
    state.same[number] = expected
    if same_constant(state, number, expected):
        state.placements[number] = R
        return
    known = _is_constant(state, number, expected)
    constant = known and bool(here.content and there.content)
    reason = (
        "a constant that is another one on a rank"
        if constant
        else "a value that was made where the trace does not see it"
    )
    state.placements[number] = Unknown(reason)
    state.stuck.append(
        Stuck(
            "TP209" if constant else "TP210",
            f"{local.target.rpartition('.')[2]} is given {reason}",
            why="a constant was taken from a local size" if constant else "what was not recorded is not proved",
            found=f"{here}" + (", other elements" if constant and here.shape == there.shape else ""),
            needed=f"{there}",
            module=local.module,
            op=local,
        )
    )


def _is_constant(state: State, number: int, expected: int) -> bool:
    """Whether a value, and the one that it stands for, were there before the forward, or are constants."""
    here = state.local.values[number]
    return here.name is not None and not here.name.startswith(UNRECORDED) and expected not in state.whole.producer


def same_constant(state: State, number: int, expected: int) -> bool:
    """Whether two constants have the same elements, as far as these are known, in the same form."""
    here, there = state.local.values[number], state.whole.values[expected]
    alike = (here.shape, here.dtype, here.content) == (there.shape, there.dtype, there.content)
    return alike and there.name is not None and _is_constant(state, number, expected)


def crossed(local: Op, whole: Op) -> Stuck:
    """An op is given another value than its counterpart on a single device."""
    return Stuck(
        "TP211",
        f"{local.target} is fed another value than on a single device",
        why="the two programs are related value by value",
        found=f"another operand of {local.target}",
        needed=f"the operands of {whole.target} on a single device",
        module=local.module,
        op=local,
    )
