"""The attribute names by which torchtitan shards a model, and what it does with each.

Source: torchtitan 0.2.2, `torchtitan/experiments/transformers_modeling_backend/hf_sharding.py` (`_set_layer_sharding_configs`).
"""

from shardproof.planner.ir.graph import Graph
from shardproof.verify.clients.vllm.fusers import is_linear

NAMES: tuple[tuple[str, str], ...] = (
    ("self_attn.q_b_proj", "colwise"),
    ("self_attn.q_proj", "colwise"),
    ("self_attn.kv_b_proj", "colwise"),
    ("self_attn.k_proj", "colwise"),
    ("self_attn.v_proj", "colwise"),
    ("self_attn.o_proj", "rowwise"),
    ("self_attn.dense", "rowwise"),
    ("mlp.gate_proj", "colwise"),
    ("mlp.fc1", "colwise"),
    ("mlp.up_proj", "colwise"),
    ("mlp.down_proj", "rowwise"),
    ("mlp.fc2", "rowwise"),
)
"""Paths in a layer, and what torchtitan does with them; the client's own table, not ours."""

PROJECTIONS = (("q_proj", "q_a_proj"), ("k_proj", "kv_a_proj_with_mqa"), ("v_proj", "kv_a_proj_with_mqa"))
"""Of each, an attention must have one: it raises otherwise."""


def layout_by_names(graph: Graph) -> dict[str, str] | None:
    """The style of every linear layer that has a known name; None where an attention has no known projection.

    What no name covers stays whole here; torchtitan itself refuses it where it has parameters.
    """
    paths = [module.path for module in graph.modules]
    if not all(any(path.endswith(f".self_attn.{name}") for path in paths for name in names) for names in PROJECTIONS):
        return None
    styled = ((module, _style_of(module.path)) for module in graph.modules if is_linear(module))
    return {module.path: style for module, style in styled if style is not None}


def _style_of(path: str) -> str | None:
    return next((style for name, style in NAMES if path.endswith(f".{name}")), None)
