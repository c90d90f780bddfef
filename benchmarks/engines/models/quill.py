"""Attention and feed-forward side by side, query, key and value of each head beside each other in one matrix, tied head."""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class QuillConfig(PreTrainedConfig):
    model_type = "quill"

    def __init__(
        self,
        vocab_size: int = 288,
        hidden_size: int = 256,
        inner: int = 384,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 512,
        tie_word_embeddings: bool = True,
        **kwargs: object,
    ) -> None:
        self.vocab_size, self.hidden_size, self.inner = vocab_size, hidden_size, inner
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.max_position_embeddings, self.tie_word_embeddings = max_position_embeddings, tie_word_embeddings
        super().__init__(**kwargs)  # type: ignore[arg-type]  # its fields are untyped


class Nib(nn.Module):
    """Attention with one projection in and one out; every second pair of a head is turned by its position."""

    def __init__(self, config: QuillConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling, self.is_causal = self.head_dim**-0.5, True
        self.dip = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.draw = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        **kwargs: object,
    ) -> torch.Tensor:
        batch, length, _ = hidden_states.shape
        heads = self.dip(hidden_states).view(batch, length, -1, 3, self.head_dim)
        query, key, value = (heads[..., part, :].transpose(1, 2) for part in range(3))
        query, key = self.turned(query, *turns), self.turned(key, *turns)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        mixed, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.draw(mixed.reshape(batch, length, -1))  # type: ignore[no-any-return]  # a module's call

    @staticmethod
    def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


class Stroke(nn.Module):
    def __init__(self, config: QuillConfig, layer_idx: int) -> None:
        super().__init__()
        self.level = nn.LayerNorm(config.hidden_size)
        self.nib = Nib(config, layer_idx)
        self.widen, self.close = (
            nn.Linear(config.hidden_size, config.inner),
            nn.Linear(config.inner, config.hidden_size),
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        flat = self.level(hidden_states)
        mixed = self.nib(flat, turns, attention_mask, past_key_values, **kwargs)
        return hidden_states + mixed + self.close(nn.functional.gelu(self.widen(flat)))  # type: ignore[no-any-return]


class QuillPreTrainedModel(PreTrainedModel):
    config_class = QuillConfig
    base_model_prefix = "transformer"
    _supports_sdpa = _supports_attention_backend = True


class QuillModel(QuillPreTrainedModel):
    def __init__(self, config: QuillConfig) -> None:
        super().__init__(config)
        self.marks = nn.Embedding(config.vocab_size, config.hidden_size)
        self.strokes = nn.ModuleList(Stroke(config, index) for index in range(config.num_hidden_layers))
        self.end = nn.LayerNorm(config.hidden_size)
        self.post_init()  # type: ignore[no-untyped-call]  # it has no annotations

    def get_input_embeddings(self) -> nn.Module:
        return self.marks

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.marks = value  # type: ignore[assignment]  # a table again

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
            inputs_embeds = self.marks(input_ids)
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
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        rates = 10000.0 ** (-torch.arange(half, device=inputs_embeds.device, dtype=torch.float32) / half)
        angles = (position_ids[..., None].float() * rates)[:, None]
        turns = (angles.cos().to(inputs_embeds.dtype), angles.sin().to(inputs_embeds.dtype))
        hidden_states = inputs_embeds
        for stroke in self.strokes:
            hidden_states = stroke(hidden_states, turns, mask, past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.end(hidden_states), past_key_values=past_key_values)


class QuillForCausalLM(QuillPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "transformer.marks.weight"}  # noqa: RUF012  # Transformers' own form

    def __init__(self, config: QuillConfig) -> None:
        super().__init__(config)
        self.transformer = QuillModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]  # it has no annotations

    def forward(
        self, input_ids: torch.Tensor | None = None, labels: torch.Tensor | None = None, **kwargs: object
    ) -> CausalLMOutputWithPast:
        found = self.transformer(input_ids, **kwargs)
        logits = self.lm_head(found.last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=found.past_key_values)
