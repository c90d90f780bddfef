"""Which plan NeMo AutoModel applies to a model: its own for the class, the model's, or the one for Llama's names.

Source: NeMo AutoModel 0.7.0, `components/distributed/parallelizer.py` (`_get_parallel_plan`, `get_hf_tp_shard_plan`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from shardproof.planner.ir.findings import Finding
from shardproof.planner.ir.plan import Plan, join
from shardproof.planner.transformers_facts.composed_plan import TABLE
from shardproof.planner.transformers_facts.tables import automatic_style
from shardproof.verify.clients.dialect import Dialect
from shardproof.verify.clients.nemo.own_plans import LLAMA_NAMES, own_plan
from shardproof.verify.findings import be411, be416

REMOTE = "transformers_modules."
"""Where Transformers puts modules of code that comes with a checkpoint."""


@dataclass(frozen=True, slots=True)
class ChosenPlan:
    """The plan that is applied: keys as the head model has them -> a Transformers style of the same effect, or one of the
    dialect; and what there is to say of the choice.
    """

    styles: Mapping[str, str]
    findings: tuple[Finding, ...] = ()


def choose(dialect: Dialect, model: nn.Module, prefix: str, plan: Plan) -> ChosenPlan:
    """The plan that NeMo applies to a model that carries this one."""
    kind = type(model).__name__
    own = own_plan(model)
    if own is not None:
        told = be416.plan_not_read(dialect.name, f"it has a plan of its own for {kind}", cite=dialect.cites[1])
        return ChosenPlan(own, () if not plan.styles(prefix) else (told,))
    styles = _composed(model, prefix, plan)
    unknown = next(((key, style) for key, style in styles.items() if dialect.effect(style) is None), None)
    if styles and unknown is None:
        return ChosenPlan({key: dialect.effect(style) or "replicate" for key, style in styles.items()})
    why = f'"{unknown[1]}" is no style of it' if unknown is not None else "the model has none"
    if type(model).__module__.startswith(REMOTE):
        return ChosenPlan({}, (be411.plan_required(dialect.name, dialect.cites[0]),))
    entry = unknown[0] if unknown is not None else ""
    told = be416.plan_replaced(dialect.name, why, entry, cite=dialect.cites[0], styles=list(dialect.styles))
    return ChosenPlan(LLAMA_NAMES, (told,))


def _composed(model: nn.Module, prefix: str, plan: Plan) -> dict[str, str]:
    """The model's plan with an entry for the table: what the installed Transformers gives it, else NeMo's own."""
    styles = plan.styles(prefix)
    owner = prefix if plan.tp and prefix else "model" if isinstance(getattr(model, "model", None), nn.Module) else ""
    table = join(owner, TABLE)
    if not styles or table in styles:
        return styles
    has_one = any(path == table for path, _ in model.named_modules())
    automatic = automatic_style(model, table) if plan.tp and has_one else ""
    return {**styles, table: automatic or "rowwise_rep"}
