"""Whether the installed Transformers can shard a model with tied weights."""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.distributed import fsdp


def refused_as_tied(model: nn.Module) -> str:
    """What the library raises when it looks for the tied tables of a model, which it does before it shards any; empty where
    it finds them, or needs none.

    Source: transformers 5.23.0, distributed/mixin.py, `_resolve_parallel_plans`: tied weights are looked up by
    `get_input_embeddings` also where nothing is sharded by FSDP.
    """
    resolve: Callable[[dict[str, str], Any], object] | None = getattr(fsdp, "_resolve_tied_embed_lm_head_plan", None)
    if resolve is None:
        return ""
    try:
        resolve({}, model)
    except NotImplementedError as error:
        return str(error)
    except Exception:  # of a module that is no Transformers model: nothing is known
        return ""
    return ""
