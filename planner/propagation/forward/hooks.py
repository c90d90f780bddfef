"""The placements that a style's hook expects and gives, for the ops `tp.*` of one rank's program."""

from collections.abc import Mapping
from dataclasses import dataclass

from shardproof.planner.ir.graph import Graph, Op
from shardproof.planner.ir.placement import P, Partial, Placement, R, Replicate, Shard, Unknown
from shardproof.planner.ir.plan import join
from shardproof.planner.propagation.forward.relation import Pair, State, Stuck, settle
from shardproof.planner.propagation.rules.registry import semantics
from shardproof.planner.propagation.semantics import Call, Einsum


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


def hook(state: State, pair: Pair) -> None:
    """Set the placement of a hook's result; add to `state.stuck` if its input does not have the placement that it expects."""
    op = pair.local
    source, made = op.inputs[0], op.outputs[0]
    placement = state.placements.get(source, R)
    entry = state.assigned.modules[op.module][1]
    whole = state.same.get(source, -1)
    ndim = len(state.local.values[source].shape)
    rule = _HOOKS.get(op.target)
    if isinstance(placement, Unknown):
        result: Placement = placement
    elif rule is not None and rule.wants == "P" and source in state.zeros:
        result = R  # the sum of zeros is zero: a loop whose body did not run
    elif rule is not None and not _expected_placement(rule.wants, placement, ndim, _packed_as(state, op)):
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
    settle(state, made, result, whole, entry)
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


def _packed_as(state: State, op: Op) -> Shard:
    """How the input features of a module's weight are packed: a weight in blocks takes an input in the same blocks."""
    placement, _ = state.assigned.parameters.get(join(op.module, "weight"), (R, ""))
    unequal = isinstance(placement, Shard) and placement.parts
    return placement if unequal and isinstance(placement, Shard) else Shard(0)


def _expected_placement(kind: str, placement: Placement, ndim: int, weight: Shard) -> bool:
    match kind:
        case "R":
            return isinstance(placement, Replicate)
        case "S":
            return placement == weight.to(ndim - 1)
        case _:
            return isinstance(placement, Partial)


def _after_hook(state: State, op: Op, placement: Placement, ndim: int) -> Placement:
    match op.target:
        case "tp.sequence":
            return placement if _keeps_second_dim(state.local, op) else Unknown("a module that mixes the sequence dim")
        case "tp.enter" | "tp.ids" | "tp.reduce" | "tp.gather":
            return R
        case "tp.sharded" if isinstance(placement, Shard):
            return placement
        case "tp.split" | "tp.sharded":
            return Shard(ndim - 1)
        case "tp.rope":
            return placement
        case "tp.divide":
            return P if isinstance(placement, Replicate) else Unknown("only a whole input can be divided by the degree")
        case _:
            return Unknown(f"no rule for {op.target}")


def _keeps_second_dim(local: Graph, hook: Op) -> bool:
    """Whether a module computes every position of dim 1 separately. Then sharding that dim inside the module changes nothing."""
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
