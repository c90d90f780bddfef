# ruff: noqa: RUF012  # modeling code has Transformers' habits; variants use all imports
# mypy: ignore-errors
from transformers import PreTrainedConfig


class FinchConfig(PreTrainedConfig):
    model_type = "finch"
    base_model_tp_plan = {
        "blocks.*.attention.query": "colwise",
        "blocks.*.attention.key": "colwise",
        "blocks.*.attention.value": "colwise",
        "blocks.*.attention.out": "rowwise",
        "blocks.*.feed.wide": "colwise",
        "blocks.*.feed.narrow": "rowwise",
    }
    base_model_pp_plan = {
        "table": (["input_ids"], ["inputs_embeds"]),
        "blocks": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "last_norm": (["hidden_states"], ["hidden_states"]),
    }

    def __init__(
        self,
        vocab_size=160,
        hidden_size=48,
        intermediate_size=72,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)
