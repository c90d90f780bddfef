"""A small custom model with names that say nothing: its plan has to come from the computation.

    plan suggest examples/custom_model.py:ComboForCausalLM
    plan verify examples/custom_model.py:ComboForCausalLM --plan plan.json --tp 2

Attention reads one fused projection that is interleaved per head (query, key, value of head 0, then of head 1, ...),
and runs in parallel with the feed-forward, on the same normed input.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class ComboConfig(PreTrainedConfig):
    """The sizes of a Combo model."""

    model_type = "combo"

    def __init__(
        self,
        vocab_size: int = 512,
        hidden_size: int = 128,
        intermediate_size: int = 320,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 256,
        use_cache: bool = True,
        **kwargs: object,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads
        self.head_dim = hidden_size // num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.use_cache = use_cache
        super().__init__(**kwargs)


def plain_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; tensors are [batch, heads, length, head_dim]."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2), weights


class Mixer(nn.Module):
    """Self-attention with one projection in (`stem`) and one out (`fuse`)."""

    def __init__(self, config: ComboConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.stem = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=True)
        self.fuse = nn.Linear(config.hidden_size, config.hidden_size, bias=True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        **kwargs: object,
    ) -> torch.Tensor:
        batch, length, _ = hidden_states.shape
        packed = self.stem(hidden_states).view(batch, length, -1, 3 * self.head_dim).transpose(1, 2)
        query, key, value = packed.chunk(3, dim=-1)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, plain_attention
        )
        mixed, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.fuse(mixed.reshape(batch, length, -1))


class Block(nn.Module):
    """Attention and feed-forward side by side on one normed input."""

    def __init__(self, config: ComboConfig, layer_idx: int) -> None:
        super().__init__()
        self.scale = nn.LayerNorm(config.hidden_size)
        self.mixer = Mixer(config, layer_idx)
        self.widen = nn.Linear(config.hidden_size, config.intermediate_size)
        self.shrink = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        normed = self.scale(hidden_states)
        mixed = self.mixer(normed, attention_mask, past_key_values, **kwargs)
        return hidden_states + mixed + self.shrink(nn.functional.gelu(self.widen(normed)))


class ComboPreTrainedModel(PreTrainedModel):
    config_class = ComboConfig
    base_model_prefix = "trunk"
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _supports_attention_backend = True


class ComboModel(ComboPreTrainedModel):
    """Token and position embeddings, blocks, a last norm."""

    def __init__(self, config: ComboConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.last = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.tokens = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        if inputs_embeds is None:
            inputs_embeds = self.tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        hidden_states = inputs_embeds + self.places(position_ids)
        for block in self.blocks:
            hidden_states = block(hidden_states, mask, past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.last(hidden_states), past_key_values=past_key_values)


class ComboForCausalLM(ComboPreTrainedModel, GenerationMixin):
    """The model with a language-model head."""

    def __init__(self, config: ComboConfig) -> None:
        super().__init__(config)
        self.trunk = ComboModel(config)
        self.readout = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.readout

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.readout = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        outputs = self.trunk(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        logits = self.readout(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)
