"""Relate one rank's program to the single-device program, op by op, by a placement for every value.

Both programs are graphs of the same forward; the local one has ops `tp.*` where a style's hook acts. All other ops must
agree one for one. An op's placement follows from its inputs' by the rule table, and the local shape must be what that
placement makes of the global shape. Where it does not, or where no rule tells, a `Stuck` says so once, and what follows from
it is `Unknown`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.ir.graph import Graph, Op
from planner.ir.placement import P, Partial, Placement, R, Replicate, Shard, Unknown
from planner.ir.plan import generic
from planner.ir.styles import Before, Layout
from planner.sharding.assign import Assigned
from planner.sharding.follow import Problem, cut_inside, follow, related
from planner.sharding.registry import semantics
from planner.sharding.semantics import Call, Einsum


@dataclass(frozen=True, slots=True)
class Stuck:
    """Where the relation breaks: `code` names the finding, `position` the op of the global graph (None: an output), `blame`
    the whole local value that should have been a part."""

    code: str
    message: str
    why: str
    found: str
    needed: str
    position: int | None = None
    module: str = ""
    op: Op | None = None
    entry: str | None = None
    blame: int | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """One op of the local program beside its op of the global one; a hook's op has none, nor has a slice of all there is."""

    local: Op
    whole: Op | None
    position: int


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


@dataclass
class _State:
    whole: Graph
    local: Graph
    assigned: Assigned
    degree: int
    placements: dict[int, Placement] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)
    entry_of: dict[int, str] = field(default_factory=dict)
    stuck: list[Stuck] = field(default_factory=list)
    zeros: set[int] = field(default_factory=set)


def propagate(whole: Graph, local: Graph, assigned: Assigned, degree: int) -> Propagation:
    """Walk the two programs together."""
    state, pairs = _walk(whole, local, assigned, degree)
    if len(pairs) == len(local.ops):
        if (missing := sum(pair.whole is not None for pair in pairs)) < len(whole.ops):
            state.stuck.append(_diverged(None, whole.ops[missing], missing))
        else:
            _check_outputs(state)
    else:
        # A loop over a sharded dim is shorter on a rank: which element a turn should have had is not to be told.
        state.stuck = [stuck for stuck in state.stuck if stuck.op is None or stuck.op.target != "aten.select"]
    return Propagation(whole, local, pairs, state.placements, state.same, state.entry_of, tuple(state.stuck))


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
    entry = _entry(state, failed)
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


def _walk(whole: Graph, local: Graph, assigned: Assigned, degree: int) -> tuple[_State, tuple[Pair, ...]]:
    state = _State(whole, local, assigned, degree)
    _place_inputs(state)
    pairs = _align(state)
    for pair in pairs:
        if pair.whole is None and pair.local.target == "aten.slice":
            _local_slice(state, pair)
        elif pair.whole is None:
            _hook(state, pair)
        else:
            _step(state, pair, pair.whole)
    return state, pairs


def _place_inputs(state: _State) -> None:
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


def _tied_apart(state: _State, aliases: list[str]) -> None:
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


def _align(state: _State) -> tuple[Pair, ...]:
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
        if whole is None or whole.target != op.target or whole.module != op.module:
            state.stuck.append(_diverged(op, whole, position))
            return tuple(pairs)
        pairs.append(Pair(op, whole, position))
        position += 1
    return tuple(pairs)


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


def _set(state: _State, number: int, placement: Placement, whole: int, entry: str | None) -> None:
    state.placements[number] = placement
    state.same[number] = whole
    if entry:
        state.entry_of[number] = entry


def _entry(state: _State, op: Op) -> str | None:
    """The entry behind an op: its own module's where that lays out parameters, else that of its first input that is not
    whole, else its own module's.
    """
    own = state.assigned.modules.get(op.module)
    if own is not None and own[0].layout is not Layout.KEEP:
        return own[1]
    for number in op.inputs:
        if not isinstance(state.placements.get(number, R), Replicate) and number in state.entry_of:
            return state.entry_of[number]
    return own[1] if own is not None else None


def _step(state: _State, pair: Pair, whole: Op) -> None:
    """One op that both programs run."""
    local = pair.local
    entry = _entry(state, local)
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
        _set(state, number, placement, global_number, entry)
    if local.target in ZEROS or (local.target in ("aten.new_full", "aten.full") and local.args[-1] == 0):
        state.zeros.update(local.outputs)


def _local_slice(state: _State, pair: Pair) -> None:
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
                entry=_entry(state, op),
            )
        )
    _set(state, made, Unknown(reason), state.same.get(source, -1), None)


def _stuck(state: _State, pair: Pair, problem: Problem) -> Stuck:
    op = pair.local
    blame = op.inputs[problem.blame] if problem.blame is not None else None
    entry = _entry(state, op)
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


def _input_placements(state: _State, local: Op, whole: Op) -> tuple[Placement, ...]:
    """The placements of an op's inputs; an input that stands for another global value than it should is unknown."""
    found: list[Placement] = []
    for number, expected in zip(local.inputs, whole.inputs, strict=False):
        if number not in state.placements:
            state.placements[number], state.same[number] = R, expected
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
    return tuple(found)


def _looks_up_own_rows(state: _State, op: Op) -> bool:
    """Whether the ids of a lookup are those that the style's hook has masked."""
    ids = op.inputs[1]
    made = state.local.producer.get(ids)
    return made is not None and state.local.ops[made].target == "tp.ids"


@dataclass(frozen=True, slots=True)
class _HookRule:
    wants: str
    code: str
    message: str
    why: str


_HOOKS: Mapping[str, _HookRule] = {
    "tp.enter": _HookRule("R", "TP206", "the style takes a whole input", "a shard meets a weight of full input width"),
    "tp.ids": _HookRule("R", "TP206", "the lookup takes whole ids", "ids are looked up in every rank's rows"),
    "tp.split": _HookRule("R", "TP206", "the style splits its input itself", "a shard is split twice"),
    "tp.sharded": _HookRule("S", "TP203", "the style takes a shard of the last dim", "a whole input is too wide for its weight"),
    "tp.gather": _HookRule("S", "TP205", "the style gathers shards of the last dim", "gathering whole outputs repeats them"),
    "tp.reduce": _HookRule("P", "TP205", "the style sums partial outputs", "a whole output is counted once per rank"),
}  # fmt: skip


def _hook(state: _State, pair: Pair) -> None:
    """What a style's hook makes of a value, and whether the value is what it takes."""
    op = pair.local
    source, made = op.inputs[0], op.outputs[0]
    placement = state.placements.get(source, R)
    entry = state.assigned.modules[op.module][1]
    whole = state.same.get(source, -1)
    ndim = len(state.local.values[source].shape)
    rule = _HOOKS.get(op.target)
    if isinstance(placement, Unknown):
        result: Placement = placement
    elif rule is not None and not _wanted(rule.wants, placement, ndim):
        code = "TP206" if op.target == "tp.reduce" and isinstance(placement, Shard) else rule.code
        code = "TP204" if isinstance(placement, Partial) else code
        why = rule.why if code == rule.code else _other_why(placement)
        needed = {"R": "R", "S": f"S({ndim - 1})", "P": "P(sum)"}[rule.wants]
        state.stuck.append(
            Stuck(
                code,
                f"{rule.message}, and gets {placement}",
                why,
                str(placement),
                needed,
                pair.position,
                op.module,
                op,
                entry,
                source if op.target == "tp.sharded" and isinstance(placement, Replicate) else None,
            )
        )
        result = Unknown(rule.message)
    else:
        result = _after_hook(state, op, placement, ndim)
    _set(state, made, result, whole, entry)
    if isinstance(result, Unknown) and not isinstance(placement, Unknown) and rule is None:
        state.stuck.append(
            Stuck(
                "TP210",
                f"no rule for {op.target}",
                "the style's effect is not modelled",
                str(placement),
                "a rule",
                pair.position,
                op.module,
                op,
                entry,
            )
        )


def _other_why(placement: Placement) -> str:
    return (
        "a partial sum is not a value yet" if isinstance(placement, Partial) else "shards are concatenated, not summed"
    )


def _wanted(kind: str, placement: Placement, ndim: int) -> bool:
    match kind:
        case "R":
            return isinstance(placement, Replicate)
        case "S":
            return placement == Shard(ndim - 1)
        case _:
            return isinstance(placement, Partial)


def _after_hook(state: _State, op: Op, placement: Placement, ndim: int) -> Placement:
    match op.target:
        case "tp.sequence":
            return placement if _keeps_second_dim(state.local, op) else Unknown("a module that mixes the sequence dim")
        case "tp.enter" | "tp.ids" | "tp.reduce" | "tp.gather":
            return R
        case "tp.split" | "tp.sharded":
            return Shard(ndim - 1)
        case "tp.rope":
            return placement
        case "tp.divide":
            return P if isinstance(placement, Replicate) else Unknown("only a whole input can be divided by the degree")
        case _:
            return Unknown(f"no rule for {op.target}")


def _keeps_second_dim(local: Graph, hook: Op) -> bool:
    """Whether a module computes every place of dim 1 by itself: then it makes no difference what the client takes that dim
    for.
    """
    ndim = len(local.values[hook.inputs[0]].shape)
    inside = [op for op in local.ops if op.module == hook.module and not op.target.startswith("tp.")]
    below = any(op.module.startswith(f"{hook.module}.") for op in local.ops)
    return ndim > 1 and not below and all(_is_pointwise_in(Call(local, op), ndim) for op in inside)


def _is_pointwise_in(call: Call, ndim: int) -> bool:
    meaning = semantics(call)
    if not isinstance(meaning, Einsum):
        return False
    letters = {given[1] for given in meaning.inputs if len(given) == ndim}
    outputs = {made[1] if len(made) == ndim else None for made in meaning.outputs}
    return len(letters) == 1 and letters == outputs and not letters & meaning.locked


def _check_outputs(state: _State) -> None:
    for (name, local), (_, whole) in zip(state.local.outputs, state.whole.outputs, strict=False):
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
