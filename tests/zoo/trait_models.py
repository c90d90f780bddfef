"""A small decoder whose feed-forward layer has one trait at a time, for the classes of code that a proof has to judge rightly."""

# mypy: disable-error-code="no-any-return, no-untyped-call"
# Modeling code has Transformers' habits.

import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

STEPS = {"ran": 0}
"""A module's own state, which a layer may count in."""


class TraitConfig(PreTrainedConfig):
    """The trait, and small sizes."""

    model_type = "tests_trait"
    trait: str = "plain"
    vocab_size: int = 96
    hidden_size: int = 32
    intermediate_size: int = 48
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    use_cache: bool = True


class Side(enum.Enum):
    """Which of two paths a layer takes."""

    ONE = 1
    OTHER = 2


class Clipped(torch.autograd.Function):
    """The identity, whose gradient is scaled by its largest element."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0] / (1e-6 + grads[0].abs().amax(-1, keepdim=True))


class Doubled(torch.autograd.Function):
    """The identity, whose gradient is doubled: element by element."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0] * 2


def _entry(cache: DynamicCache | None, index: int) -> Any:
    """What an earlier forward has left at a place of the cache."""
    return cache.layers[index] if cache is not None and len(cache.layers) > index else None


class Attention(nn.Module):
    """Causal attention on the heads that a rank holds."""

    def __init__(self, config: TraitConfig, index: int) -> None:
        super().__init__()
        self.index, self.trait, self.size = index, config.trait, config.hidden_size // config.num_attention_heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4))

    def forward(self, x: Tensor, cache: DynamicCache | None) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.q, self.k, self.v))
        reads = self.trait == "own entry of the cache" and x.shape[1] == 1
        if reads and (held := _entry(cache, self.index)) is not None:
            k, v = torch.cat((held.keys, k), 2), torch.cat((held.values, v), 2)
        elif cache is not None:
            k, v = cache.update(k, v, self.index)
        scale = (q.shape[1] * self.size) ** -0.5 if self.trait == "keyword from a local size" else self.size**-0.5
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, scale=scale)
        return self.o(mixed.transpose(1, 2).flatten(2))


class Feed(nn.Module):
    """Up, the trait, down."""

    seen: Tensor

    def __init__(self, config: TraitConfig, index: int) -> None:
        super().__init__()
        self.trait, self.index = config.trait, index
        self._private = index % 2
        self.pair, self.side = ("any", index % 2), Side.OTHER if index % 2 else Side.ONE
        if "statistic" in config.trait:
            self.register_buffer("seen", torch.ones(()))
        self.function: Callable[[Tensor], Tensor] = (lambda h: h.softmax(-1)) if index % 2 else (lambda h: h)
        self.up, self.down = (
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )
        self.log: Tensor | None = None
        self.penalty: Tensor | None = None
        self.last = False
        if config.trait == "frozen layer" and index == 1:
            self.up.bias.requires_grad_(False)
        if config.trait == "hook of one layer" and index == 1:
            self.up.register_forward_hook(lambda module, args, out: out.softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        if self.trait == "written in place":
            return self.down(F.relu(self.up(x), inplace=True))
        if self.trait == "forward directly":
            return self.down(self.up.forward(x).relu())
        return self.down(TRAITS.get(self.trait, plain)(self, self.up(x), x))

    def leave(self, penalty: Tensor, h: Tensor) -> Tensor:
        self.penalty = penalty
        return h


def plain(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    return h


def _without_gradient(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        mean = x.mean(-1, keepdim=True)
    return h * (1 + mean)


def _switched(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    mean = x.mean(-1, keepdim=True)
    torch.set_grad_enabled(True)
    return h * (1 + mean)


def _scaled_later(feed: Feed, h: Tensor, of: Tensor, *, read: bool = True) -> Tensor:
    """Training keeps a mean of `of`, by which evaluation divides."""
    if feed.training:
        with torch.no_grad():
            feed.seen.copy_(of.abs().mean())
        return h
    return h / feed.seen if read else h


def _divided_by_the_last(feed: Feed, h: Tensor, of: Tensor, *, when: bool = True, read: bool = True) -> Tensor:
    """An attribute keeps a mean of `of` for the next forward, which divides by it."""
    last = feed.penalty if read else None
    if when:
        feed.penalty = of.detach().abs().mean()
    return h if last is None else h / (1 + last)


def _counted(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    STEPS["ran"] = 1 if feed.index == 0 else STEPS["ran"] + 1
    return h.softmax(-1) if STEPS["ran"] == 2 else h


def _logged(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    feed.log = h.softmax(-1).mean()
    return h


def _hooked(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda grad: grad - grad.mean(-1, keepdim=True))
    return h


def _hooked_each(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda grad: grad * 0.5)
    return h


def _view_of_what_is_written(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    h = h.clone()
    pairs = h.unflatten(-1, (-1, 2))
    h.copy_(h.softmax(-1))
    return pairs.flatten(-2)


def _view_of_what_is_written_by_element(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    h = h.clone()
    pairs = h.unflatten(-1, (-1, 2))
    h.mul_(0.5)
    return pairs.flatten(-2)


def _written_to(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return h
    made = torch.empty_like(h)
    torch.cumsum(h, -1, out=made)
    return made


def _part_by_size(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    first = h.shape[-1] // 12
    return h * (1 + x.detach()[..., first : first + 2].mean(-1, keepdim=True))


def _step_by_size(feed: Feed, h: Tensor, x: Tensor) -> Tensor:
    step = h.shape[-1] // 24
    return h * (1 + x.detach()[..., : 4 * step : step].mean(-1, keepdim=True))


def _saved(h: Tensor, pack: Callable[[Tensor], Tensor], unpack: Callable[[Tensor], Tensor]) -> Tensor:
    """A product whose backward reads what was packed in the forward."""
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return h * h


TRAITS: dict[str, Callable[[Feed, Tensor, Tensor], Tensor]] = {
    "index": lambda feed, h, x: h.softmax(-1) if feed.index % 2 else h,
    "private attribute": lambda feed, h, x: h.softmax(-1) if feed._private else h,
    "tuple": lambda feed, h, x: h.softmax(-1) if feed.pair[1] else h,
    "enum": lambda feed, h, x: h.softmax(-1) if feed.side is Side.OTHER else h,
    "closure": lambda feed, h, x: feed.function(h),
    "module state": _counted,
    "training only": lambda feed, h, x: h.softmax(-1) if feed.training else h,
    "differentiated in the forward": lambda feed, h, x: (
        h + torch.func.grad(lambda t: t.softmax(-1).square().sum())(h.detach())
    ),
    "saved in half": lambda feed, h, x: _saved(h, Tensor.half, Tensor.float),
    "saved as it is": lambda feed, h, x: _saved(h, Tensor.double, Tensor.float),
    "statistic of a part": lambda feed, h, x: _scaled_later(feed, h, h),
    "statistic of the input": lambda feed, h, x: _scaled_later(feed, h, x),
    "mean of the last forward": lambda feed, h, x: _divided_by_the_last(feed, h, h),
    "mean of the last training": lambda feed, h, x: _divided_by_the_last(feed, h, h, when=feed.training),
    "mean of the last input": lambda feed, h, x: _divided_by_the_last(feed, h, x),
    "mean that is only kept": lambda feed, h, x: _divided_by_the_last(feed, h, h, read=False),
    "statistic that nothing reads": lambda feed, h, x: _scaled_later(feed, h, h, read=False),
    "one token only": lambda feed, h, x: h.softmax(-1) if x.shape[1] == 1 else h,
    "branch on data": lambda feed, h, x: h.softmax(-1) if x.abs().max() > 1e-3 else h,
    "number read off": lambda feed, h, x: h / (1 + h.abs().sum().item()),
    "number read off, not of a part": lambda feed, h, x: h / (1 + x.abs().sum().item()),
    "numpy constant": lambda feed, h, x: h * torch.from_numpy(np.array([9.0 / h.shape[-1]])).to(h),
    "typed constant": lambda feed, h, x: h * torch.FloatTensor([9.0 / h.shape[-1]]).to(h),
    "moved by a pad": lambda feed, h, x: F.pad(h, (2, -2)),
    "drawn for a part": lambda feed, h, x: h * torch.bernoulli(torch.full_like(h, 0.5)),
    "hook on a gradient": _hooked,
    "own backward": lambda feed, h, x: Clipped.apply(h),
    "mask over a part": lambda feed, h, x: h * (1 + h[h > 0].mean()),
    "own backward, each element": lambda feed, h, x: Doubled.apply(h),
    "hook on a gradient, each element": _hooked_each,
    "without gradient": _without_gradient,
    "gradient switched off": _switched,
    "data attribute": lambda feed, h, x: h * (1 + x.data.mean(-1, keepdim=True)),
    "logged and not read": _logged,
    "not a number": lambda feed, h, x: torch.nan_to_num(h.masked_fill(h < -1e9, float("nan"))),
    "dropped": lambda feed, h, x: F.dropout(h, 0.1, feed.training),
    "straight through": lambda feed, h, x: h + (h.sign() - h).detach(),
    "view of what is written": _view_of_what_is_written,
    "view of what is written by element": _view_of_what_is_written_by_element,
    "written to as out": _written_to,
    "a slice that begins at a local size": _part_by_size,
    "a step of a local size": _step_by_size,
    "tiled to a local size": lambda feed, h, x: h * (1 + x.detach()[..., :2].repeat(1, 1, h.shape[-1] // 2)),
    "set by the model": lambda feed, h, x: h.softmax(-1) if feed.last else h,
    "frozen layer": lambda feed, h, x: h if feed.up.bias.requires_grad else h.softmax(-1),
    "left for the loss": lambda feed, h, x: feed.leave(h.abs().mean(), h),
    "left for the loss, whole": lambda feed, h, x: feed.leave(x.square().mean(), h),
    "index as a factor": lambda feed, h, x: h * (1 + feed.index),
}


class Layer(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, config: TraitConfig, index: int, feed: Feed | None) -> None:
        super().__init__()
        self.mix, self.feed = Attention(config, index), feed or Feed(config, index)

    def forward(self, x: Tensor, cache: DynamicCache | None) -> Tensor:
        x = x + self.mix(x, cache)
        return x + self.feed(x)


class TraitPreTrained(PreTrainedModel):
    """What all classes of the model share."""

    config_class = TraitConfig
    base_model_prefix = "model"


class TraitModel(TraitPreTrained):
    """The layers."""

    def __init__(self, config: TraitConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        shared = Feed(config, 0) if config.trait == "one module in all layers" else None
        self.layers = nn.ModuleList(Layer(config, index, shared) for index in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(
        self, input_ids: Tensor, past_key_values: DynamicCache | None = None, use_cache: bool | None = None
    ) -> BaseModelOutputWithPast:
        cache = past_key_values
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache()
        x = self.words(input_ids)
        for number, layer in enumerate(self.layers):
            if self.config.trait == "set by the model":
                assert isinstance(layer, Layer)
                layer.feed.last = number == len(self.layers) - 1
            x = layer(x, cache)
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=cache)


class TraitForCausalLM(TraitPreTrained, GenerationMixin):
    """The model with its head; a trait of the loss lies here."""

    def __init__(self, config: TraitConfig) -> None:
        super().__init__(config)
        self.model = TraitModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> CausalLMOutputWithPast:
        out = self.model(input_ids, past_key_values, use_cache)
        logits, loss = self.head(out.last_hidden_state), None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            if self.config.trait == "loss reads features":
                loss = loss + self.model.layers[0].feed.up(out.last_hidden_state).softmax(-1).square().mean()
            if self.config.trait.startswith("left for the loss"):
                loss = loss + sum(layer.feed.penalty for layer in self.model.layers)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)
