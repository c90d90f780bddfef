"""Relate one rank's program to the single-device program, op by op, by a placement for every value.

Both programs are graphs of the same forward; the local one has ops `tp.*` where a style's hook acts. All other ops must
agree one for one. An op's placement follows from its inputs' by the rule table, and the local shape must be what that
placement makes of the global shape. Where it does not, or where no rule tells, a `Stuck` says so once, and what follows from
it is `Unknown`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shardproof.planner.ir.dataflow import live_ops
from shardproof.planner.ir.graph import OWN_BACKWARD, UNRECORDED, Arg, Graph, Op, Ref
from shardproof.planner.ir.placement import P, Partial, Placement, R, Replicate, Shard, Unknown
from shardproof.planner.ir.plan import generic
from shardproof.planner.ir.styles import Before
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.propagation.doubts.coincidence import doubted
from shardproof.planner.propagation.follow import follow, related
from shardproof.planner.propagation.hooks import hook
from shardproof.planner.propagation.relation import Pair, Problem, State, Stuck, entry_behind, settle
from shardproof.planner.propagation.rules.registry import semantics
from shardproof.planner.propagation.semantics import Call, Fresh
from shardproof.planner.propagation.views import cut_inside


@dataclass(frozen=True)
class Propagation:
    """Placements and provenance of the *local* program's values, and everything that got stuck."""

    whole: Graph
    local: Graph
    pairs: tuple[Pair, ...]
    placements: Mapping[int, Placement]
    same: Mapping[int, int]
    entry_of: Mapping[int, str]
    stuck: tuple[Stuck, ...]


def propagate(whole: Graph, local: Graph, assigned: Assigned, degree: int) -> Propagation:
    """Walk the two programs together."""
    state, pairs = _walk(whole, local, assigned, degree)
    live = live_ops(local)
    dead = {id(op) for position, op in enumerate(local.ops) if position not in live}
    state.stuck = [*state.stuck[: state.apart], *(one for one in state.stuck[state.apart :] if id(one.op) not in dead)]
    if len(pairs) == len(local.ops):
        if (missing := sum(pair.whole is not None for pair in pairs)) < len(whole.ops):
            state.stuck.append(_diverged(None, whole.ops[missing], missing))
        else:
            _check_outputs(state)
    else:
        # A loop over a sharded dim is shorter on a rank: which element a turn should have had is not to be told.
        state.stuck = [stuck for stuck in state.stuck if stuck.op is None or stuck.op.target != "aten.select"]
    stuck = tuple(doubted(whole, one) for one in state.stuck)
    return Propagation(whole, local, pairs, state.placements, state.same, state.entry_of, stuck)


def explain_failure(
    whole: Graph, before: Graph, failed: Op | None, assigned: Assigned, degree: int
) -> tuple[Stuck | None, str | None]:
    """Why a local program fails: the first place where it left the relation, or what is wrong with the op that failed; and
    the entry behind that op's inputs, for where the rules say nothing."""
    state, pairs = _walk(whole, before, assigned, degree)
    if state.stuck:
        return state.stuck[0], None
    if failed is None:
        return None, None
    entry = entry_behind(state, failed)
    position = sum(pair.whole is not None for pair in pairs)
    if position >= len(whole.ops) or whole.ops[position].target != failed.target:
        return None, entry
    counterpart = whole.ops[position]
    placements = _input_placements(state, failed, counterpart)
    if any(isinstance(placement, Unknown) for placement in placements):
        return None, entry
    call, local = Call(whole, counterpart), Call(before, failed)
    found = related(call, local, placements, degree)
    if not isinstance(found, Problem):
        found = cut_inside(call, local, placements, degree) or found
    pair = Pair(failed, counterpart, position)
    return (_stuck(state, pair, found), entry) if isinstance(found, Problem) else (None, entry)


def _walk(whole: Graph, local: Graph, assigned: Assigned, degree: int) -> tuple[State, tuple[Pair, ...]]:
    state = State(whole, local, assigned, degree)
    _place_inputs(state)
    pairs = _align(state)
    state.apart = len(state.stuck)
    for pair in pairs:
        if pair.whole is None and pair.local.target == "aten.slice":
            _local_slice(state, pair)
        elif pair.whole is None:
            hook(state, pair)
        else:
            _step(state, pair, pair.whole)
    return state, pairs


def _place_inputs(state: State) -> None:
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


def _align(state: State) -> tuple[Pair, ...]:
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
            state.stuck.append(_diverged(op, whole, position))
            return tuple(pairs)
        pairs.append(Pair(op, whole, position))
        position += 1
    return tuple(pairs)


def _same_place(op: Op, whole: Op, assigned: Assigned) -> bool:
    """Whether two ops run in one module; a module whose `forward` is called by itself is told only where a style hooks it."""
    return op.module == whole.module or (op.module in assigned.modules and op.module.startswith(f"{whole.module}."))


def _crossed(local: Op, whole: Op) -> Stuck:
    return Stuck(
        "TP211",
        f"{local.target} is fed another value than on a single device",
        why="the two programs are related value by value",
        found=f"another operand of {local.target}",
        needed=f"the operands of {whole.target} on a single device",
        module=local.module,
        op=local,
    )


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


def _diverged(local: Op | None, whole: Op | None, position: int) -> Stuck:
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


def _step(state: State, pair: Pair, whole: Op) -> None:
    """One op that both programs run."""
    if whole.target == OWN_BACKWARD:
        _own_backward(state, pair, whole)
    else:
        _follow(state, pair, whole)


def _own_backward(state: State, pair: Pair, whole: Op) -> None:
    """Values whose backward is the model's own: they lie as what they stand for, and every gradient has to lie as its input
    does, or be a share of a whole input's gradient.
    """
    local = pair.local
    entry = entry_behind(state, local)
    placements = dict(zip(local.inputs, _input_placements(state, local, whole), strict=False))
    for made, of, stands_for in zip(local.outputs, whole.outputs, _refs(local.args[0]), strict=False):
        settle(state, made, placements.get(stands_for, R), of, entry)
    inputs, gradients = _refs(local.args[1]), local.args[2]
    lying = [placements.get(number, R) for number in inputs]
    if gradients is None and any(not isinstance(placement, Replicate) for placement in lying):
        problem = Problem(
            "TP210",
            "a backward of the model's own is given a shard, and could not be traced",
            "what was not traced is not proved",
            ", ".join(map(str, lying)),
            "R, or a backward that runs on meta tensors",
        )
        state.stuck.append(_stuck(state, pair, problem))
    given = gradients if isinstance(gradients, tuple) else ()
    for at, gradient in zip(lying, given, strict=False):
        found = placements.get(gradient.value, R) if isinstance(gradient, Ref) else at
        share = isinstance(at, Replicate) and isinstance(found, Partial)
        if found != at and not share and not isinstance(found, Unknown) and not isinstance(at, Unknown):
            problem = Problem(
                "TP219",
                "the backward of the model's own gives a gradient that is no part of the whole one",
                "a gradient lies as the value that it belongs to",
                str(found),
                str(at),
            )
            state.stuck.append(_stuck(state, pair, problem))


def _refs(arg: Arg) -> list[int]:
    return [one.value for one in arg if isinstance(one, Ref)] if isinstance(arg, tuple) else []


def _follow(state: State, pair: Pair, whole: Op) -> None:
    local = pair.local
    entry = entry_behind(state, local)
    placements = _input_placements(state, local, whole)
    reasons = [p.reason for p in placements if isinstance(p, Unknown)]
    if reasons:
        results: tuple[Placement, ...] = tuple(Unknown(reasons[0]) for _ in whole.outputs)
    else:
        masked = local.target.endswith("embedding") and _looks_up_own_rows(state, local)
        call, counterpart = Call(state.whole, whole), Call(state.local, local)
        followed = follow(call, counterpart, placements, state.degree, masked=masked)
        if isinstance(followed, Problem):
            state.stuck.append(_stuck(state, pair, followed))
            results = tuple(Unknown(followed.message) for _ in whole.outputs)
        else:
            results = followed
    for number, global_number, placement in zip(local.outputs, whole.outputs, results, strict=False):
        settle(state, number, placement, global_number, entry)
    if local.target in ZEROS or (local.target in ("aten.new_full", "aten.full") and local.args[-1] == 0):
        state.zeros.update(local.outputs)
    if semantics(Call(state.whole, whole)) == Fresh(uniform=True):
        state.uniform.update(local.outputs)


def _local_slice(state: State, pair: Pair) -> None:
    """A slice that takes all of a dim on a single device, and on a rank the first places of what should be its own part."""
    op = pair.local
    source, made = op.inputs[0], op.outputs[0]
    shape, cut = state.local.values[source].shape, state.local.values[made].shape
    reason = f"slice takes the first part of {list(shape)} on every rank"
    if shape != cut and not isinstance(state.placements.get(source, R), Unknown):
        state.stuck.append(
            Stuck(
                "TP203",
                reason,
                why="the same offset means another place in a rank's part",
                found=str(list(cut)),
                needed=f"this rank's part of {list(shape)}, or all of it",
                position=pair.position,
                module=op.module,
                op=op,
                entry=entry_behind(state, op),
            )
        )
    settle(state, made, Unknown(reason), state.same.get(source, -1), None)


def _stuck(state: State, pair: Pair, problem: Problem) -> Stuck:
    op = pair.local
    blame = op.inputs[problem.blame] if problem.blame is not None else None
    entry = entry_behind(state, op)
    if blame is not None and blame in state.entry_of and blame not in state.local.producer:
        entry, blame = state.entry_of[blame], None  # a parameter that an entry of its own has placed
    if blame is not None and not isinstance(state.placements.get(blame, R), Replicate):
        blame = None  # it has an entry of its own, which made it what it is
    return Stuck(
        problem.code,
        problem.message,
        problem.why,
        problem.found,
        problem.needed,
        pair.position,
        op.module,
        op,
        entry,
        blame,
    )


ZEROS = ("aten.zeros", "aten.zeros_like", "aten.new_zeros", "aten.zero_")


def _input_placements(state: State, local: Op, whole: Op) -> tuple[Placement, ...]:
    """The placements of an op's inputs; an input that stands for another global value than it should is unknown."""
    found: list[Placement] = []
    for number, expected in zip(local.inputs, whole.inputs, strict=False):
        if number not in state.placements:
            _place_constant(state, local, number, expected)
        if state.same[number] != expected:
            state.stuck.append(_crossed(local, whole))
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
    if _same_constant(state, number, expected):
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


def _same_constant(state: State, number: int, expected: int) -> bool:
    """Whether two constants have the same elements, as far as these are known, in the same form."""
    here, there = state.local.values[number], state.whole.values[expected]
    alike = (here.shape, here.dtype, here.content) == (there.shape, there.dtype, there.content)
    return alike and there.name is not None and _is_constant(state, number, expected)


def _looks_up_own_rows(state: State, op: Op) -> bool:
    """Whether the ids of a lookup are those that the style's hook has masked."""
    ids = op.inputs[1]
    made = state.local.producer.get(ids)
    return made is not None and state.local.ops[made].target == "tp.ids"


def _check_outputs(state: State) -> None:
    if [name for name, _ in state.local.outputs] != [name for name, _ in state.whole.outputs]:
        state.stuck.append(_other_outputs(state))
    for (name, local), (_, whole) in zip(state.local.outputs, state.whole.outputs, strict=False):
        if state.same.get(local, whole) != whole or (
            local not in state.same and not _same_constant(state, local, whole)
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
