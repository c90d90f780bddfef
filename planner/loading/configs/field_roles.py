"""The role of a config field, by patterns of field names; there is no table per model type."""

import re
from typing import TypeAlias

Fields: TypeAlias = dict[str, object]

_ROLES: tuple[tuple[str, str], ...] = (
    (
        "layers",
        r"(num|n)_(hidden_|decoder_|encoder_|transformer_)?(layers?|blocks?)(_per_stack)?|depth|(encoder|decoder)_layers",
    ),
    ("last layers", r"(num_)?\w*shared_layers"),
    ("dense layers", r"first_k_dense\w*|(num|n)_(first_)?dense_layers"),
    ("vocabulary", r"(\w+_)?vocab(ulary)?_size(_\w+)?|n_vocab"),
    ("kv heads", r"(num_|n_)?(kv|key_value)_heads?|(num|n)_heads?_kv|multi_query_group_num"),
    ("heads", r"(num_|n_|encoder_|decoder_)?(attention_|attn_|query_|q_)?heads?"),
    ("rank", r"\w*(lora_)?rank"),
    ("head dim", r"(\w+_)?head_(dim|size|width)|d_(kv|head)|kv_channels"),
    ("rotary", r"rotary_(n?dims?|emb_dim|size)|rope_dim"),
    ("chosen", r"\w*(per_tok|per_token|top_?k(_experts)?|moe_k)"),
    ("groups", r"n_group|num_expert_groups?"),
    ("chosen groups", r"topk_group"),
    ("shared", r"\w*shared_experts?"),
    ("experts", r"\w*experts?"),
    ("intermediate", r"\w*(intermediate|ffn|ffw|feed_?forward|inner|mlp_dim|mlp_size|mlp_hidden)\w*|d_ff|ff_dim"),
    (
        "hidden",
        r"hidden_(size|dim)|n_embd|d_model|(model_|embed_|embedding_)?dim|embedding_size|word_embed_proj_dim|width",
    ),
    (
        "positions",
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|(model_)?max_length|block_size",
    ),
    ("window", r"\w*window(_size)?|\w*chunk_size"),
    ("period", r"\w*(interval|period|_freq|_step|_pattern|every_n\w*)"),
)
_COMPILED = tuple((role, re.compile(pattern)) for role, pattern in _ROLES)


def role_of(name: str) -> str | None:
    """The role of a config field, such as `kv heads`; None if its name matches no pattern."""
    return next((role for role, pattern in _COMPILED if pattern.fullmatch(name)), None)
