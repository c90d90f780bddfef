# ruff: noqa: F401, RUF012, RUF059, TID252  # modeling code has Transformers' habits; variants use all imports
# mypy: ignore-errors
import functools
import types
from collections import ChainMap
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_finch import FinchConfig


class Rms(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, states):
        mean = states.float().square().mean(dim=-1, keepdim=True)
        return self.weight * (states.float() * torch.rsqrt(mean + 1e-6)).to(states.dtype)


class Rotation(nn.Module):
    def __init__(self, config):
        super().__init__()
        steps = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        self.register_buffer("rates", 10000.0**-steps, persistent=False)

    def forward(self, states, position_ids):
        angles = position_ids[..., None].float() * self.rates
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(states.dtype), angles.sin().to(states.dtype)


def rotated(states, cosine, sine):
    first, second = states.chunk(2, dim=-1)
    return states * cosine[:, None] + torch.cat([-second, first], dim=-1) * sine[:, None]


def own_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1)
    attended = weights @ value
    return attended.transpose(1, 2).contiguous(), weights


class FinchAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        width, narrow = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.query = nn.Linear(config.hidden_size, width, bias=False)
        self.key = nn.Linear(config.hidden_size, narrow, bias=False)
        self.value = nn.Linear(config.hidden_size, narrow, bias=False)
        self.out = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, hidden_states, angles, attention_mask=None, past_key_values=None, **kwargs):
        shape = hidden_states.shape[:-1]
        heads = (*shape, -1, self.head_dim)
        query = self.query(hidden_states).view(heads).transpose(1, 2)
        key = self.key(hidden_states).view(heads).transpose(1, 2)
        value = self.value(hidden_states).view(heads).transpose(1, 2)
        query, key = rotated(query, *angles), rotated(key, *angles)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, own_attention)
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        output = output.reshape(*shape, -1).contiguous()
        return self.out(output)


class Feed(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wide = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.narrow = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, states):
        return self.narrow(functional.silu(self.wide(states)))


class Block(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.attention = FinchAttention(config, layer_idx)
        self.feed = Feed(config)
        self.first_norm = Rms(config.hidden_size)
        self.second_norm = Rms(config.hidden_size)

    def forward(self, hidden_states, angles=None, attention_mask=None, past_key_values=None, **kwargs):
        normed = self.first_norm(hidden_states)
        mixed = self.attention(normed, angles, attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + mixed
        return hidden_states + self.feed(self.second_norm(hidden_states))


class FinchPreTrainedModel(PreTrainedModel):
    config_class = FinchConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class FinchModel(FinchPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([Block(config, index) for index in range(config.num_hidden_layers)])
        self.last_norm = Rms(config.hidden_size)
        self.rotation = Rotation(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.table

    def set_input_embeddings(self, value):
        self.table = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        if inputs_embeds is None:
            inputs_embeds = self.table(input_ids)
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        hidden_states = inputs_embeds
        angles = self.rotation(hidden_states, position_ids)
        for block in self.blocks:
            hidden_states = block(hidden_states, angles, attention_mask=mask, past_key_values=past_key_values, **kwargs)
        hidden_states = self.last_norm(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)


class FinchForCausalLM(FinchPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {}

    def __init__(self, config):
        super().__init__(config)
        self.model = FinchModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, labels=None, logits_to_keep=0, **kwargs):
        states = self.model(input_ids=input_ids, **kwargs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(states.last_hidden_state[:, keep, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=states.past_key_values)
