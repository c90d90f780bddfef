"""What arrives of a plan that is given beside the one that the model has: the merged plan, and how to keep that the one given."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.transformers_facts.styles import registered

WHOLE = "replicate"
"""The style that leaves a module whole."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """The entries to give, the plan that the client then has, and a sentence for each own entry that stays."""

    given: Mapping[str, str]
    plan: Plan
    lost: tuple[str, ...]


def through_distributed_config(model: nn.Module, plan: Plan) -> Arriving:
    """`DistributedConfig(tp_plan=...)`: merged over the model's own plan (5.23.0, `distributed/mixin.py`,
    `_resolve_parallel_plans`). Own entries that the plan lacks are given as `replicate`.
    """
    prefix = base_prefix(model)
    own = {str(key): str(style) for key, style in (getattr(model, "_tp_plan", None) or {}).items()}
    given = plan.styles(prefix)
    absent = [key for key in own if key not in given]
    if WHOLE in registered():
        given = {**given, **dict.fromkeys(absent, WHOLE)}
        absent = []
    lost = tuple(
        f'the model\'s own entry "{key}": "{own[key]}" stays, because no style leaves it whole' for key in absent
    )
    return Arriving(given, _as_plan(plan, own | given, prefix), lost)


def through_config(model: nn.Module, plan: Plan) -> Arriving:
    """Keys of config.json: they replace the base model's plan, and the plan of the class with the head stays."""
    kept = {str(key): str(style) for key, style in (type(model).__dict__.get("_tp_plan") or {}).items()}
    wanted = {entry.pattern: entry.style for entry in plan.head_tp}
    lost = [
        f'"{key}": "{style}" of the class cannot be said in a config'
        for key, style in wanted.items()
        if kept.get(key) != style
    ]
    lost += [f'"{key}": "{style}" of the class stays' for key, style in kept.items() if key not in wanted]
    arriving = replace(plan, head_tp=tuple(TpEntry(key, style) for key, style in kept.items()))
    return Arriving({entry.pattern: entry.style for entry in plan.tp}, arriving, tuple(lost))


def _as_plan(plan: Plan, styles: Mapping[str, str], prefix: str) -> Plan:
    inside = f"{prefix}." if prefix else ""
    base = {key.removeprefix(inside): style for key, style in styles.items() if key.startswith(inside)}
    head = {key: style for key, style in styles.items() if not key.startswith(inside)}
    return replace(
        plan,
        tp=tuple(TpEntry(key, style) for key, style in base.items()),
        head_tp=tuple(TpEntry(key, style) for key, style in head.items()),
    )
