# mypy: disable-error-code="no-any-return, no-untyped-call"
# Modeling code has Transformers' habits.
"""Attention, experts and feed-forward layers of random models, each in the forms that research code has."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from tests.zoo.fuzz_steps import BY_NAME, READS, Half

SOURCES = ("up", "packed halves", "packed rows", "packed pairs", "up called directly")
"""How the features are made of the input."""
ENDS = ("down", "down called directly", "weight of down")
HOOKS = ("", "forward", "forward of one layer", "before", "backward", "backward mean")
"""Hooks that the constructor registers on modules."""


class FuzzFeed(nn.Module):
    """Source, steps, end."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        width, features = config.hidden_size, config.intermediate_size
        self.config, self.index, self.steps = config, index, tuple(filter(None, config.steps.split(";")))
        self._private, self.pair, self.which = index % 2, ("any", index % 2), Half.SECOND if index % 2 else Half.FIRST
        self.function: Callable[[Tensor], Tensor] = (lambda h: h.softmax(-1)) if index % 2 else (lambda h: h)
        self.up = nn.Linear(width, features)
        if config.source.startswith("packed"):
            self.pack = nn.Linear(width, 2 * features)
        if set(READS["gate"]) & set(self.steps):
            self.gate = nn.Linear(width, features)
        if set(READS["weight"]) & set(self.steps):
            self.weight = nn.Parameter(torch.ones(features))
        if set(READS["bias"]) & set(self.steps):
            self.bias = nn.Parameter(torch.zeros(features))
        self.down = nn.Linear(features, width)
        self.register_buffer("table", torch.linspace(0.5, 1.5, features), persistent=False)
        self.factor, self.log = 1.0 / (1 + features), None
        _register(self, config.hooks, index)

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        for step in self.steps:
            h = BY_NAME[step](self, h, x)
        match self.config.end:
            case "down called directly":
                return self.down.forward(h)
            case "weight of down":
                return F.linear(h, self.down.weight, self.down.bias)
        return self.down(h)

    def features(self, x: Tensor) -> Tensor:
        match self.config.source:
            case "packed halves":
                one, other = self.pack(x).chunk(2, -1)
            case "packed rows":
                one, other = self.pack(x).unflatten(-1, (2, -1)).unbind(-2)
            case "packed pairs":
                one, other = self.pack(x).unflatten(-1, (-1, 2)).unbind(-1)
            case "up called directly":
                return self.up.forward(x)
            case _:
                return self.up(x)
        return F.silu(one) * other + self.up(x)


def _register(feed: FuzzFeed, hooks: str, index: int) -> None:
    match hooks:
        case "forward":
            feed.up.register_forward_hook(lambda *given: given[2].tanh())
        case "forward of one layer" if index == 1:
            feed.up.register_forward_hook(lambda *given: given[2].softmax(-1))
        case "before":
            feed.down.register_forward_pre_hook(lambda *given: (given[1][0] * 0.5,))
        case "backward":
            feed.down.register_full_backward_hook(lambda *given: (given[1][0] * 0.5,))
        case "backward mean":
            feed.up.register_full_backward_hook(lambda *given: (given[1][0] - given[1][0].mean(),))


MIXERS = (
    "",
    "heads",
    "grouped",
    "packed",
    "packed by head",
    "eager",
    "scale of a part",
    "slopes",
    "sinks",
    "normed heads",
    "heads by number",
    "no cache",
    "cache in the module",
    "mean of the cache",
    "softmax over heads",
)


class FuzzMixer(nn.Module):
    """Attention, causal and under a padding mask, with a KV cache."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.kind, self.index, self.heads, self.size = config.mixer, index, 6, 4
        width, wide = config.hidden_size, 24
        self.narrow = wide // 2 if self.kind == "grouped" else wide
        if self.kind.startswith("packed"):
            self.qkv = nn.Linear(width, 3 * wide)
        else:
            self.q, self.k = nn.Linear(width, 2 * wide if self.kind == "grouped" else wide), nn.Linear(width, wide)
            self.v = nn.Linear(width, wide)
        self.o = nn.Linear(2 * wide if self.kind == "grouped" else wide, width)
        if self.kind == "sinks":
            self.sinks = nn.Parameter(torch.zeros(self.heads))
        if self.kind == "normed heads":
            self.norm = nn.RMSNorm(self.size)
        self.kept: list[Tensor] = []

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.kind == "packed":
            parts = self.qkv(x).chunk(3, -1)
        elif self.kind == "packed by head":
            parts = self.qkv(x).unflatten(-1, (-1, 3, self.size)).unbind(-2)
            return tuple(part.transpose(1, 2) for part in parts)
        else:
            parts = (self.q(x), self.k(x), self.v(x))
        heads = self.heads if self.kind == "heads by number" else -1
        return tuple(part.unflatten(-1, (heads, self.size)).transpose(1, 2) for part in parts)

    def forward(self, x: Tensor, mask: Tensor, cache: DynamicCache | None) -> Tensor:
        q, k, v = self.projected(x)
        if self.kind == "normed heads":
            q, k = self.norm(q), self.norm(k)
        if cache is not None and self.kind != "no cache":
            k, v = cache.update(k, v, self.index)
        if self.kind == "cache in the module" and cache is not None:
            self.kept = [k]
        if self.kind == "mean of the cache" and k.shape[2] > q.shape[2]:
            v = v - v.mean((1, 3), keepdim=True)
        mask = mask[..., -q.shape[2] :, -k.shape[2] :]
        if self.kind == "grouped":
            k, v = (part.repeat_interleave(2, 1) for part in (k, v))
        return self.o(self.mixed(q, k, v, mask).transpose(1, 2).flatten(2))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        match self.kind:
            case "scale of a part":
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1 / (q.shape[1] * self.size))
            case "heads" | "grouped" | "packed" | "packed by head":
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        scores = q @ k.transpose(-1, -2) / self.size**0.5 + mask
        match self.kind:
            case "slopes":
                scores = scores * torch.arange(1, q.shape[1] + 1, device=q.device)[:, None, None]
            case "sinks":
                sinks = self.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
                return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v
            case "softmax over heads":
                scores = scores.clamp_min(-9).softmax(1)
        return scores.softmax(-1) @ v


EXPERTS = (
    "",
    "where",
    "one hot",
    "capacity",
    "by number",
    "mean",
    "detached",
    "last layer",
    "square",
    "masked",
    "hits",
    "first token",
    "config count",
    "stacked product",
)


class FuzzExperts(nn.Module):
    """Stacked experts, called with hidden states, expert ids and routing weights."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.kind, self.num_experts, self.count = config.experts, config.num_experts, config.num_experts
        self.last = index == config.num_hidden_layers - 1
        self.up = nn.Parameter(torch.empty(config.num_experts, config.intermediate_size, config.hidden_size))
        self.down = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, config.intermediate_size))

    def one(self, number: Any, x: Tensor) -> Tensor:
        made = F.linear(F.silu(F.linear(x, self.up[number])), self.down[number])
        return made * (1 + 0.1 * number) if self.kind == "by number" else made

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        match self.kind:
            case "mean":
                x = x - x.mean(0, keepdim=True)
            case "first token":
                x = x + x[:1]
            case "detached":
                weights = weights.detach()
            case "square":
                weights = weights.square()
            case "last layer" if self.last:
                weights = weights.square()
            case "stacked product":
                every = torch.einsum("tw,efw->tef", x, self.up).relu()
                return torch.einsum("tef,ewf,te->tw", every, self.down, self._dense(ids, weights))
        return self.looped(x, ids, weights)

    def _dense(self, ids: Tensor, weights: Tensor) -> Tensor:
        return weights.new_zeros(len(ids), self.up.shape[0]).scatter(1, ids, weights)

    def looped(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        chosen = F.one_hot(ids, num_classes=self.num_experts).permute(2, 1, 0) if self.kind == "one hot" else None
        numbers: Sequence[int] = range(self.count if self.kind == "config count" else self.num_experts)
        if self.kind == "hits":
            numbers = [number for number in ids.unique().tolist() if number < self.num_experts]
        for number in numbers:
            if self.kind == "masked":
                mask = ids == number
                if mask.any():
                    token = mask.any(-1)
                    weight = (weights * mask).sum(-1)[token, None]
                    out[token] += self.one(number, x[token]) * weight
                continue
            slot, token = torch.where(chosen[number] if chosen is not None else (ids == number).t())
            if self.kind == "capacity":
                slot, token = slot[: len(x) // 2], token[: len(x) // 2]
            out = out.index_add(0, token, self.one(number, x[token]) * weights[token, slot, None])
        return out


class FuzzMixture(nn.Module):
    """Router and experts."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = FuzzExperts(config, index)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, ids = self.router(flat).softmax(-1).topk(2, -1)
        return self.experts(flat, ids, weights).view(x.shape)
