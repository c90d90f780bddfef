"""Relate one rank's program to the single-device program, op by op, by a placement for every value.

Both programs are graphs of the same forward; the local one has ops `tp.*` where a style's hook acts. All other ops must
agree one for one. An op's placement follows from its inputs' by the rule table, and the local shape must be what that
placement makes of the global shape. Where it does not, or where no rule tells, a `Stuck` says so once, and what follows from
it is `Unknown`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shardproof.planner.ir.dataflow import live_ops
from shardproof.planner.ir.graph import OWN_BACKWARD, Arg, Graph, Op, Ref
from shardproof.planner.ir.placement import Partial, Placement, R, Replicate, Unknown
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.propagation.forward.alignment import align, check_outputs, diverged
from shardproof.planner.propagation.forward.coincidence import doubted
from shardproof.planner.propagation.forward.hooks import hook
from shardproof.planner.propagation.forward.op_placements import follow, related
from shardproof.planner.propagation.forward.operands import operand_placements, place_inputs
from shardproof.planner.propagation.forward.relation import Pair, Problem, State, Stuck, entry_behind, settle
from shardproof.planner.propagation.forward.views import cut_inside
from shardproof.planner.propagation.rules.registry import semantics
from shardproof.planner.propagation.semantics import Call, Fresh


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
            state.stuck.append(diverged(None, whole.ops[missing], missing))
        else:
            check_outputs(state)
    else:
        # A loop over a sharded dim is shorter on a rank: which element a turn should have had is not to be told.
        state.stuck = [stuck for stuck in state.stuck if stuck.op is None or stuck.op.target not in _TURNS]
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
    placements = operand_placements(state, failed, counterpart)
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
    place_inputs(state)
    pairs = align(state)
    state.apart = len(state.stuck)
    for pair in pairs:
        if pair.whole is None and pair.local.target == "aten.slice":
            _local_slice(state, pair)
        elif pair.whole is None:
            hook(state, pair)
        else:
            _step(state, pair, pair.whole)
    return state, pairs


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
    placements = dict(zip(local.inputs, operand_placements(state, local, whole), strict=False))
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
    placements = operand_placements(state, local, whole)
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


_TURNS = ("aten.select", "aten.slice")
"""Ops by which a turn of a loop takes its element of a dim."""
ZEROS = ("aten.zeros", "aten.zeros_like", "aten.new_zeros", "aten.zero_")


def _looks_up_own_rows(state: State, op: Op) -> bool:
    """Whether the ids of a lookup are those that the style's hook has masked."""
    ids = op.inputs[1]
    made = state.local.producer.get(ids)
    return made is not None and state.local.ops[made].target == "tp.ids"
