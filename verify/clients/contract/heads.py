"""BE419: heads that are not the config's.

vLLM's attention is told the number of heads and their width by the config alone, and takes what it is given for that
(0.32.0, `vllm/transformers_utils/model_arch_config_convertor.py`: `get_head_size`, `get_total_num_kv_heads`). The shapes that
arrive are read from the trace of the whole model.
"""

from collections.abc import Collection

from torch import nn
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

from shardproof.planner.ir.findings import Finding, Place
from shardproof.planner.ir.graph import Graph, Op
from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.config_fields import field_of, head_width
from shardproof.verify.findings import be419

KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
"""Fields that say the number of key-value heads, the first that there is; else there are as many as query heads."""

_REPEATS = (
    "aten.view",
    "aten.reshape",
    "aten._unsafe_view",
    "aten.clone",
    "aten.expand",
    "aten.unsqueeze",
    "aten.slice",
)


def check_heads(model: nn.Module, graph: Graph, paths: Collection[str]) -> list[Finding]:
    """One finding for each kind of layer, of the attention modules at `paths`.

    None where the config has no one number for all layers, or for latent attention, whose sizes are other fields.
    """
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    told = _told(text) if text is not None else None
    if told is None:
        return []
    found: dict[str, Finding] = {}
    for op in graph.ops:
        if op.target == "attention" and op.module in paths:
            for name, number, wanted in zip(("query", "key", "value"), op.inputs, told, strict=False):
                shape = graph.values[_given(graph, op, number)].shape
                if len(shape) == 4 and (shape[1], shape[3]) != wanted:
                    place, given = Place(module=op.module, source=op.source), (shape[1], shape[3])
                    found.setdefault(generic(op.module), be419.heads_differ(name, place, given=given, told=wanted))
    return list(found.values())


def _told(text: object) -> tuple[tuple[int, int], ...] | None:
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


def _given(graph: Graph, attention: Op, value: int) -> int:
    """The value before key-value heads are repeated, where the line that calls the interface repeats them."""
    for _ in range(6):
        made = graph.producer.get(value)
        if made is None or graph.ops[made].target not in _REPEATS or graph.ops[made].source != attention.source:
            return value
        value = graph.ops[made].inputs[0]
    return value
