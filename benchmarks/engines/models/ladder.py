"""Rotary attention over grouped heads, gate and up in one matrix, norms before and after each part."""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class LadderConfig(PreTrainedConfig):
    model_type = "ladder"

    def __init__(
        self,
        vocab_size: int = 320,
        hidden_size: int = 128,
        wide: int = 192,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 8,
        num_key_value_heads: int = 4,
        head_dim: int = 32,
        max_position_embeddings: int = 512,
        **kwargs: object,
    ) -> None:
        self.vocab_size, self.hidden_size, self.wide = vocab_size, hidden_size, wide
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads, self.head_dim = num_key_value_heads, head_dim
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)  # type: ignore[arg-type]  # its fields are untyped


class RootNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Pairs (i, i + half) rotated by their angles; x is [batch, heads, length, width]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Rung(nn.Module):
    """Attention: three projections with names of their own."""

    def __init__(self, config: LadderConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.scaling, self.is_causal = config.head_dim**-0.5, True
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        wide, narrow = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.seek = nn.Linear(config.hidden_size, wide, bias=True)
        self.hold = nn.Linear(config.hidden_size, narrow, bias=True)
        self.tell = nn.Linear(config.hidden_size, narrow, bias=True)
        self.back = nn.Linear(wide, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        angles: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        **kwargs: object,
    ) -> torch.Tensor:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = turned(self.seek(hidden_states).view(shape).transpose(1, 2), angles)
        key = turned(self.hold(hidden_states).view(shape).transpose(1, 2), angles)
        value = self.tell(hidden_states).view(shape).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        mixed, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.back(mixed.reshape(*hidden_states.shape[:-1], -1))  # type: ignore[no-any-return]  # a module's call


class Swell(nn.Module):
    """Gate and up in one matrix."""

    def __init__(self, config: LadderConfig) -> None:
        super().__init__()
        self.both = nn.Linear(config.hidden_size, 2 * config.wide, bias=False)
        self.down = nn.Linear(config.wide, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.both(hidden_states).chunk(2, dim=-1)
        return self.down(nn.functional.silu(gate) * up)  # type: ignore[no-any-return]  # a module's call


class Step(nn.Module):
    def __init__(self, config: LadderConfig, layer_idx: int) -> None:
        super().__init__()
        self.rung, self.swell = Rung(config, layer_idx), Swell(config)
        self.norms = nn.ModuleList(RootNorm(config.hidden_size) for _ in range(4))

    def forward(
        self,
        hidden_states: torch.Tensor,
        angles: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        mixed = self.rung(self.norms[0](hidden_states), angles, attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + self.norms[1](mixed)
        return hidden_states + self.norms[3](self.swell(self.norms[2](hidden_states)))  # type: ignore[no-any-return]


class LadderPreTrainedModel(PreTrainedModel):
    config_class = LadderConfig
    base_model_prefix = "model"
    _supports_sdpa = _supports_attention_backend = True


class LadderModel(LadderPreTrainedModel):
    def __init__(self, config: LadderConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.steps = nn.ModuleList(Step(config, index) for index in range(config.num_hidden_layers))
        self.top = RootNorm(config.hidden_size)
        self.post_init()  # type: ignore[no-untyped-call]  # it has no annotations

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.words = value  # type: ignore[assignment]  # a table again

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
            inputs_embeds = self.words(input_ids)
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
        half = self.config.head_dim // 2
        rates = 10000.0 ** (-torch.arange(half, device=inputs_embeds.device, dtype=torch.float32) / half)
        angles = position_ids[..., None].float() * rates
        hidden_states = inputs_embeds
        for step in self.steps:
            hidden_states = step(hidden_states, angles, mask, past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.top(hidden_states), past_key_values=past_key_values)


class LadderForCausalLM(LadderPreTrainedModel, GenerationMixin):
    def __init__(self, config: LadderConfig) -> None:
        super().__init__(config)
        self.model = LadderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]  # it has no annotations

    def forward(
        self, input_ids: torch.Tensor | None = None, labels: torch.Tensor | None = None, **kwargs: object
    ) -> CausalLMOutputWithPast:
        found = self.model(input_ids, **kwargs)
        logits = self.lm_head(found.last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=found.past_key_values)
