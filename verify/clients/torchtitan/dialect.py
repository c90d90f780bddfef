"""torchtitan's Transformers backend: it reads no plan, and looks for attribute names.

Source: torchtitan 0.2.2, `torchtitan/experiments/transformers_modeling_backend/hf_sharding.py`
(`_set_layer_sharding_configs`): the names below, of every layer; an attention without a known query or key projection
raises, and so does a parameter that no name covers. Parameters are DTensors, so every gradient is summed where it must be.
"""

from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader, Unknown

TORCHTITAN = Dialect(
    client="torchtitan",
    version="0.2.2",
    cites=("torchtitan/experiments/transformers_modeling_backend/hf_sharding.py",),
    reader=Reader.NAMES,
    matching=Matching.EXACT,
    styles={},
    unknown=Unknown.REFUSED,
    pipeline=Pipeline.NAMES,
    needs_plan=False,
)

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
