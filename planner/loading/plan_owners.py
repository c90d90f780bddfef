"""Which config class speaks for which part of a model: where the entries of a plan belong."""

from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.ir.plan import join
from shardproof.planner.loading.load import base_prefix


def plan_owners(model: nn.Module) -> dict[str, type]:
    """Paths in the base model -> the config class that speaks for what lies below them; the empty path is the base model.

    Transformers composes a model's plan out of those of its children that are models themselves (5.23.0,
    `distributed/mixin.py`, `init_parallel_plans`).
    """
    prefix = base_prefix(model)
    base = getattr(model, prefix) if prefix else model
    owners: dict[str, type] = {"": type(base.config)}

    def descend(part: nn.Module, path: str) -> None:
        for name, child in part.named_children():
            if isinstance(child, PreTrainedModel):
                # A config that two of them share is read for both; its entries are those of the outer one.
                if type(child.config) not in owners.values():
                    owners[join(path, name)] = type(child.config)
                descend(child, join(path, name))

    descend(base, "")
    return owners
