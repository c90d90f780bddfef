"""The plan that a model carries, and the config class that holds the entries of each part of the model."""

from collections.abc import Callable, Mapping

from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.ir.plan import Plan, join
from shardproof.planner.loading.adapters.base_plan import with_adapter_entries
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.modules.own_plan import own_plan


def plan_owners(model: nn.Module) -> dict[str, type]:
    """Paths in the base model -> the config class whose plan covers the modules below them; the empty path is the base model.

    Transformers composes a model's plan from the plans of its children that are models themselves (5.23.0,
    `distributed/mixin.py`, `init_parallel_plans`).
    """
    prefix = base_prefix(model)
    base = getattr(model, prefix) if prefix else model
    owners: dict[str, type] = {"": type(base.config)}

    def descend(part: nn.Module, path: str) -> None:
        for name, child in part.named_children():
            if isinstance(child, PreTrainedModel):
                # A config that both share is read for both; its entries belong to the outer model.
                if type(child.config) not in owners.values():
                    owners[join(path, name)] = type(child.config)
                descend(child, join(path, name))

    descend(base, "")
    return owners


def base_prefix(model: nn.Module) -> str:
    """The attribute in which a head model holds its base model; empty if it has no separate base model."""
    prefix = getattr(model, "base_model_prefix", "")
    return prefix if prefix and isinstance(getattr(model, prefix, None), PreTrainedModel) else ""


def reads_plans(model: nn.Module) -> bool:
    """Whether Transformers reads a plan for this model: it does so in `post_init`, which the constructor has to call."""
    return "_tp_plan" in vars(model)


def reads_config_plan(model: nn.Module) -> bool:
    """Whether Transformers reads `base_model_tp_plan` for this model: only a base model that is a `PreTrainedModel` and calls
    `post_init` reads it (5.23.0, `distributed/mixin.py`, `init_parallel_plans`).
    """
    base = getattr(model, prefix) if (prefix := base_prefix(model)) else model
    return reads_plans(base) and (bool(prefix) or getattr(model, "base_model", model) is model)


def carried_plan(loaded: LoadedModel, model: nn.Module) -> Plan:
    """The model's own plan: the attributes of its config and of its head class.

    A base model that contains models (a vision tower, a language model) has their entries too, with their names as prefixes, as
    Transformers composes them (`distributed/mixin.py`, `init_parallel_plans`). With adapters it is the plan of the base model as
    PEFT reads it.
    """
    if loaded.is_module:
        return own_plan(model)
    prefix = base_prefix(model)
    base = getattr(model, prefix) if prefix else model
    plan = Plan.from_json(
        {
            "base_model_tp_plan": _composed(base, lambda part: _of(part, "tp")),
            "base_model_pp_plan": _composed(base, lambda part: _of(part, "pp")),
            "base_model_ep_plan": _composed(base, lambda part: _of(part, "ep")),
            "tp_plan": getattr(loaded.model_class, "_tp_plan", None) or {},
            "pp_plan": getattr(loaded.model_class, "_pp_plan", None) or {},
        }
    )
    return read_for(loaded, model, plan)


def read_for(loaded: LoadedModel, model: nn.Module, plan: Plan) -> Plan:
    """A given plan as it is read for this model: with adapters, entries of the base model's modules as PEFT reads them."""
    return with_adapter_entries(plan, model, base_prefix(model)) if loaded.adapters else plan


def _of(part: nn.Module, axis: str) -> Mapping[str, object]:
    return getattr(getattr(part, "config", None), f"base_model_{axis}_plan", None) or {}


def _composed(part: nn.Module, own: Callable[[nn.Module], Mapping[str, object]], prefix: str = "") -> dict[str, object]:
    """The plan of a model and of the models among its children, with their names as prefixes."""
    plan = {join(prefix, key): value for key, value in own(part).items()}
    for name, child in part.named_children():
        if isinstance(child, PreTrainedModel):
            plan |= _composed(child, own, join(prefix, name))
    return plan
