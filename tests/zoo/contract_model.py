"""A small model that keeps the backend contract, and a small processor; examples subclass their parts.

`assemble(namespace)` builds the head class out of the parts in a namespace, which an example may have replaced.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import MultiModalData, ProcessorMixin


class Config(PretrainedConfig):
    model_type = "contract"

    def __init__(self, **kwargs: Any) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 64, 32, 2, 4
        super().__init__(**kwargs)


class Attention(nn.Module):
    def __init__(self, config: Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, 8
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups, self.is_causal = 1, True
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(32, 32, bias=False) for _ in range(4))

    def heads(self, hidden_states: torch.Tensor) -> list[torch.Tensor]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        return [p(hidden_states).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)]

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        query, key, value = self.heads(hidden_states)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        output, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(output.reshape(hidden_states.shape))  # type: ignore[no-any-return]  # torch leaves calls untyped


class Layer(nn.Module):
    attention: type[nn.Module] = Attention
    norm: type[nn.Module] = nn.RMSNorm

    def __init__(self, config: Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = self.attention(config, layer_idx)
        self.input_norm = self.norm(config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return hidden_states + self.self_attn(self.input_norm(hidden_states), **kwargs)  # type: ignore[no-any-return]  # torch leaves calls untyped


class PreTrained(PreTrainedModel):
    config_class = Config
    base_model_prefix = "model"
    _supports_attention_backend = True
    _supports_sdpa = True


class Model(PreTrained):
    layer: type[nn.Module] = Layer

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(self.layer(config, index) for index in range(config.num_hidden_layers))
        self.post_init()  # type: ignore[no-untyped-call]  # Transformers leaves it untyped

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def make_mask(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None) -> Any:
        return create_causal_mask(
            config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, past_key_values=None
        )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor]:
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = self.make_mask(hidden_states, attention_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=mask, **kwargs)
        return (hidden_states,)


class Head:
    """What the class with the head has besides its base model."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # mixed into a PreTrainedModel
        self.model = self.inner(config)  # type: ignore[attr-defined]  # set by assemble
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[attr-defined]  # of PreTrainedModel

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.lm_head(self.model(input_ids, **kwargs)[0])  # type: ignore[no-any-return]  # torch leaves calls untyped


def assemble(parts: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The head class of the parts that a namespace holds."""
    layer = type("Layer", (parts["Layer"],), {"attention": parts["Attention"]})
    model = type("Model", (parts["Model"], parts["PreTrained"]), {"layer": layer})
    head = parts.get("Head", Head)
    return type("ContractForCausalLM", (head, parts["PreTrained"]), {"inner": model, "__module__": parts["__name__"]})


class Processor(ProcessorMixin):
    """An image is one token for every 32 x 32 pixels, between two separators."""

    image_token = "<image>"
    extra, typed = 0, True

    def __init__(self) -> None:
        """Nothing of Transformers' own: it wants a tokenizer."""
        self.image_token_ids = [7, 8]

    def _count(self, height: int, width: int) -> int:
        return (height // 32) * (width // 32) + 2

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        counts = [self._count(*size) + self.extra for size in image_sizes]
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))

    def __call__(self, text: str = "", images: Any = None, **kwargs: Any) -> dict[str, Any]:
        parts, pictures = text.split(self.image_token), iter(images or ())
        ids = [1, *self._words(parts[0])]
        for part in parts[1:]:
            height, width, _ = next(pictures).shape
            ids += [8, *[7] * (self._count(height, width) - 2), 8, *self._words(part)]
        types = [int(token in self.image_token_ids) for token in ids]
        return {"input_ids": [ids]} | ({"mm_token_type_ids": [types]} if self.typed else {})

    def _words(self, text: str) -> list[int]:
        return [10 + len(word) for word in text.split()]
