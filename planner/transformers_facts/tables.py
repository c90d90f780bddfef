"""Which embedding tables the installed Transformers shards without an entry, and which models read a plan that is not theirs."""

from functools import cache
from types import SimpleNamespace

from torch import nn
from transformers import PreTrainedModel
from transformers.distributed.mixin import DistributedMixin

from shardproof.planner.transformers_facts.composed_plan import TABLE


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
    """Whether the module at `path` is a model in the base model that reads its config, or a copy of it, as its own."""
    base, inner = getattr(model, "base_model", model), model.get_submodule(path)
    if inner in (base, model) or not isinstance(inner, PreTrainedModel) or inner.base_model is not inner:
        return False
    return type(inner.config) is type(getattr(base, "config", None))
