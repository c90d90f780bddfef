"""BE419: heads that are not the config's.

vLLM's attention is told the number of heads and their width by the config alone, and takes what it is given for that
(0.32.0, `vllm/transformers_utils/model_arch_config_convertor.py`: `get_head_size`, `get_total_num_kv_heads`). The shapes that
arrive at the attention of a small model are compared with the config of that model.
"""

from collections.abc import Sequence

from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

from shardproof.planner.ir.findings import Finding, Place
from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.configs.config_fields import field_of, head_width
from shardproof.verify.clients.contract.experiments.client_attention import AttentionCall
from shardproof.verify.clients.contract.experiments.trial import Trial
from shardproof.verify.findings import be419

KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
"""Fields that say the number of key-value heads, the first that there is; else there are as many as query heads."""


def check_heads(trial: Trial, calls: Sequence[AttentionCall]) -> list[Finding]:
    """One finding for each kind of layer.

    None where the config has no one number for all layers, or for latent attention, whose sizes are other fields.
    """
    told = _heads_told(trial.text)
    found: dict[str, Finding] = {}
    for call in calls if told is not None else ():
        for name, value, wanted in zip(
            ("query", "key", "value"), (call.query, call.key, call.value), told or (), strict=True
        ):
            given = (value.shape[1], value.shape[3]) if value.ndim == 4 else wanted
            if given != wanted:
                place = Place(module=call.path, source=call.source)
                found.setdefault(generic(call.path), be419.heads_differ(name, place, given=given, told=wanted))
    return list(found.values())


def _heads_told(text: object) -> tuple[tuple[int, int], ...] | None:
    """Heads and their width of query, key and value; None where the config does not say, or says it layer by layer."""
    # An attention over latents, and one of a single head for all queries, is sized by fields of its own.
    if field_of(text, "kv_lora_rank") is not None or field_of(text, "multi_query"):
        return None
    try:
        heads, width = getattr(text, "num_attention_heads", 0), head_width(text)
        kv = next((number for name in KV_HEADS if (number := getattr(text, name, None)) is not None), heads)
    except AmbiguousGlobalPerLayerAttributeError:
        return None
    if not all(isinstance(number, int) and number for number in (heads, kv, width)):
        return None
    return (heads, width), (kv, width), (kv, width)
