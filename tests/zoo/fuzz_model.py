# mypy: disable-error-code="no-any-return, no-untyped-call, has-type"
# Modeling code has Transformers' habits.
"""A small decoder that is put together from the parts that its config names, for random models."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from tests.zoo.fuzz_parts import FuzzFeed, FuzzMixer, FuzzMixture

FRAMES = (
    "plain",
    "normed",
    "normed after",
    "side by side",
    "scaled by index",
    "leaves a tensor",
    "leaves a number",
    "leaves a tensor in decoding",
    "leaves a tensor in training",
    "shared norm",
)
"""What a layer does around its parts, and what it leaves for later layers."""
LOSSES = ("", "reads features", "mean of features", "of the part")


class FuzzConfig(PreTrainedConfig):
    """The parts; `steps` are separated by semicolons."""

    model_type = "tests_fuzz"
    keys_to_ignore_at_inference = ["past_key_values"]
    steps: str = ""
    source: str = "up"
    end: str = "down"
    hooks: str = ""
    mixer: str = ""
    experts: str = ""
    frame: str = "plain"
    loss: str = ""
    shared: bool = False
    masked_mean: bool = False
    vocab_size: int = 36
    hidden_size: int = 24
    intermediate_size: int = 48
    num_hidden_layers: int = 2
    num_experts: int = 6
    use_cache: bool = True


class FuzzShelf:
    """What layers leave for each other, past their arguments."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.count = 0


class FuzzLayer(nn.Module):
    """Attention, if there is one, and a feed-forward or experts."""

    def __init__(self, config: FuzzConfig, index: int, feed: nn.Module | None, shelf: FuzzShelf) -> None:
        super().__init__()
        self.frame, self.index, self.shelf = config.frame, index, shelf
        if config.mixer:
            self.mix = FuzzMixer(config, index)
        if config.experts:
            self.feed: nn.Module = FuzzMixture(config, index)
        else:
            self.feed = feed if feed is not None else FuzzFeed(config, index)
        if config.frame in ("normed", "normed after"):
            self.norm = nn.RMSNorm(config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor, cache: DynamicCache | None) -> Tensor:
        x = self.left(x)
        y = self.norm(x) if self.frame == "normed" else x
        mixed = self.mix(y, mask, cache) if hasattr(self, "mix") else 0.0
        if self.frame == "side by side":
            return x + mixed + self.feed(y)
        x = x + mixed
        made = self.feed(self.norm(x) if self.frame == "normed" else x)
        return x + (self.norm(made) if self.frame == "normed after" else made)

    def left(self, x: Tensor) -> Tensor:
        """What earlier layers left changes the hidden states."""
        shelf, frame = self.shelf, self.frame
        active = frame == "leaves a tensor"
        active |= frame == "leaves a tensor in decoding" and x.shape[1] == 1
        active |= frame == "leaves a tensor in training" and self.training
        if active:
            if self.index == 0:
                shelf.kept = [x]
            elif shelf.kept:
                x = x + 0.5 * shelf.kept[0]
        if frame == "leaves a number":
            shelf.count = 1 if self.index == 0 else shelf.count + 1
            x = x * (1 + 0.1 * shelf.count)
        return x * (1 + 0.1 * self.index) if frame == "scaled by index" else x


class FuzzPreTrained(PreTrainedModel):
    """What both classes share."""

    config_class = FuzzConfig
    base_model_prefix = "model"


class FuzzModel(FuzzPreTrained):
    """Embedding and layers."""

    def __init__(self, config: FuzzConfig) -> None:
        super().__init__(config)
        shelf = FuzzShelf()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        feed = FuzzFeed(config, 0) if config.shared else None
        self.layers = nn.ModuleList(FuzzLayer(config, i, feed, shelf) for i in range(config.num_hidden_layers))
        if config.frame == "shared norm":
            self.last = nn.RMSNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        cache = past_key_values
        if cache is None and (self.config.use_cache if use_cache is None else use_cache) and self.config.mixer:
            cache = DynamicCache()
        x = self.words(input_ids)
        before = cache.get_seq_length() if cache is not None else 0
        mask = self.bias(x, before, attention_mask)
        if self.config.masked_mean and attention_mask is not None:
            seen = attention_mask[:, -x.shape[1] :, None].to(x)
            x = x - (x * seen).sum(-1, keepdim=True) / x.shape[-1]
        for layer in self.layers:
            x = layer(x, mask, cache)
            x = self.last(x) if hasattr(self, "last") else x
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=cache)

    def bias(self, x: Tensor, before: int, padding: Tensor | None) -> Tensor:
        """What is added to the scores, `[rows, 1, queries, keys]`."""
        length = x.shape[1]
        mask = torch.full((length, before + length), -1e4, dtype=x.dtype, device=x.device).triu(1 + before)[None, None]
        if padding is not None and padding.shape[-1] == before + length:
            mask = mask + (1 - padding[:, None, None, :].to(x)) * -1e4
        return mask


class FuzzForCausalLM(FuzzPreTrained, GenerationMixin):
    """The model and its head."""

    def __init__(self, config: FuzzConfig) -> None:
        super().__init__(config)
        self.model = FuzzModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> CausalLMOutputWithPast:
        out = self.model(input_ids, attention_mask, past_key_values, use_cache)
        logits, loss = self.head(out.last_hidden_state), None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            loss = loss + self.beside(out.last_hidden_state)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)

    def beside(self, hidden: Tensor) -> Tensor | float:
        """What is added to the loss."""
        up = getattr(self.model.layers[0].feed, "up", None)
        match self.config.loss:
            case "reads features" if up is not None:
                return up(hidden).softmax(-1).square().mean()
            case "mean of features" if up is not None:
                return up(hidden).square().mean()
            case "of the part" if up is not None:
                return up(hidden).sum(-1).square().mean()
        return 0.0
