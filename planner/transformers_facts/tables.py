"""Which embedding tables the installed Transformers shards without an entry."""

from functools import cache
from types import SimpleNamespace

from torch import nn
from transformers import PreTrainedModel
from transformers.distributed.mixin import DistributedMixin

from shardproof.planner.transformers_facts.table_owners import TABLE


@cache
def style_without_entry() -> str:
    """The style that a table called `embed_tokens` gets if its model has entries and none for the table; empty if it stays whole.

    Read by letting the library compose the plan of a model with one other entry.
    """

    class Model(DistributedMixin, nn.Module):
        """A model of one table, with the attributes that the library's composition reads."""

        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens = nn.Embedding(2, 2, device="meta")
            plans = dict.fromkeys(("base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan"))
            self.config = SimpleNamespace(base_model_tp_plan={"other": "colwise"}, **plans)

        @property
        def base_model(self) -> nn.Module:
            return self

    composed = Model()
    composed.init_parallel_plans()
    return (composed._tp_plan or {}).get(TABLE, "")


def automatic_style(model: nn.Module, path: str) -> str:
    """The style that the library gives to the module at `path` without an entry; empty for most."""
    owner, _, name = path.rpartition(".")
    if name != TABLE or not isinstance(model.get_submodule(path), nn.Embedding):
        return ""
    return style_without_entry() if isinstance(model.get_submodule(owner), PreTrainedModel) else ""


def is_inner(model: nn.Module, path: str) -> bool:
    """Whether the table at `path` belongs to a model in the base model that has its config, or a copy of it."""
    base = getattr(model, "base_model", model)
    owner = model.get_submodule(path.rpartition(".")[0])
    return owner not in (base, model) and type(getattr(owner, "config", None)) is type(getattr(base, "config", model))
