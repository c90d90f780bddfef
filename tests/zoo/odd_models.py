"""Small models with names that say nothing, each with one structure that a plan must respect. Inference sees them cold."""

# mypy: disable-error-code="no-any-return,no-untyped-call,arg-type"
# NB: calls of torch modules return Any, and Transformers has untyped bases: this file is modeling code.

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class OddConfig(PreTrainedConfig):
    """Sizes shared by all odd models: 8 query heads of 12, 4 key heads, every dim of another size."""

    model_type = "odd"

    def __init__(
        self,
        vocab_size: int = 320,
        width: int = 96,
        inner: int = 224,
        depth: int = 3,
        heads: int = 8,
        key_heads: int = 4,
        head_width: int = 12,
        experts: int = 6,
        **kwargs: object,
    ) -> None:
        self.vocab_size, self.width, self.inner, self.depth = vocab_size, width, inner, depth
        self.heads, self.key_heads, self.head_width, self.experts = heads, key_heads, head_width, experts
        self.hidden_size = width
        super().__init__(**kwargs)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Causal attention written out; `[batch, heads, length, width]` in, `[batch, length, heads * width]` out."""
    length = query.shape[-2]
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias
    hidden = torch.ones(length, length, device=query.device, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


class Plain(nn.Module):
    """Grouped-query attention with biases everywhere."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.d = config.head_width
        self.aa = nn.Linear(config.width, config.heads * self.d)
        self.bb = nn.Linear(config.width, config.key_heads * self.d)
        self.cc = nn.Linear(config.width, config.key_heads * self.d)
        self.dd = nn.Linear(config.heads * self.d, config.width)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*x.shape[:2], -1, self.d)
        return tuple(f(x).view(shape).transpose(1, 2) for f in (self.aa, self.bb, self.cc))

    def forward(self, x: Tensor) -> Tensor:
        return self.dd(attend(*self.parts(x)))


class Baked(Plain):
    """The global head count is written into the view."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.h, self.k = config.heads, config.key_heads

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n = x.shape[:2]
        query = self.aa(x).view(b, n, self.h, self.d).transpose(1, 2)
        key = self.bb(x).view(b, n, self.k, self.d).transpose(1, 2)
        return query, key, self.cc(x).view(b, n, self.k, self.d).transpose(1, 2)


class Lone(Plain):
    """A key head that is alone loses its dim: right only while every rank holds two."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().parts(x)
        return query, key.squeeze(1), value


class Sloped(Plain):
    """A bias per head, computed from the global number of heads."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.h = config.heads

    def forward(self, x: Tensor) -> Tensor:
        slopes = 2.0 ** -torch.arange(1, self.h + 1, device=x.device, dtype=x.dtype)
        steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        return self.dd(attend(*self.parts(x), bias=slopes[:, None, None] * (steps[None] - steps[:, None])))


class WideNormed(Plain):
    """The query is normed over its full width, all heads together."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.nn_ = nn.RMSNorm(config.heads * self.d)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*x.shape[:2], -1, self.d)
        query = self.nn_(self.aa(x)).view(shape).transpose(1, 2)
        return query, self.bb(x).view(shape).transpose(1, 2), self.cc(x).view(shape).transpose(1, 2)


class HeadNormed(Plain):
    """The query is normed per head: the weight's gradient is a sum over ranks."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.nn_ = nn.RMSNorm(self.d)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().parts(x)
        return self.nn_(query), key, value


class Sunk(Plain):
    """A learnt score per head that takes a share of the softmax, and of nothing else."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.ss = nn.Parameter(torch.zeros(config.heads))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.parts(x)
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
        scores = query @ key.transpose(-1, -2)
        hidden = torch.ones(x.shape[1], x.shape[1], device=x.device, dtype=torch.bool).triu(1)
        sink = self.ss.view(1, -1, 1, 1).expand(x.shape[0], -1, x.shape[1], 1)
        weights = torch.cat([scores.masked_fill(hidden, float("-inf")), sink], -1).softmax(-1)[..., :-1]
        return self.dd((weights @ value).transpose(1, 2).flatten(2))


class Blocked(nn.Module):
    """One projection, all queries, then all keys, then all values."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.d, self.h = config.head_width, config.heads
        self.zz = nn.Linear(config.width, 3 * config.heads * self.d)
        self.yy = nn.Linear(config.heads * self.d, config.width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.zz(x).chunk(3, -1)
        return self.yy(attend(*(part.view(*x.shape[:2], -1, self.d).transpose(1, 2) for part in parts)))


class Interleaved(Blocked):
    """One projection, head by head."""

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.zz(x).view(*x.shape[:2], -1, 3, self.d)
        return self.yy(attend(*(part.transpose(1, 2) for part in mixed.unbind(3))))


class Grouped(nn.Module):
    """One projection, key group by key group: that group's queries, its key, its value."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.d, self.r = config.head_width, config.heads // config.key_heads
        self.w1 = nn.Linear(config.width, config.key_heads * (self.r + 2) * self.d)
        self.w2 = nn.Linear(config.heads * self.d, config.width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.w1(x).view(*x.shape[:2], -1, self.r + 2, self.d)
        query = mixed[..., : self.r, :].flatten(2, 3).transpose(1, 2)
        key, value = (mixed[..., self.r + i, :].transpose(1, 2) for i in (0, 1))
        return self.w2(attend(query, key, value))


class Paired(Plain):
    """Head i is mixed with head i + heads / 2."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.parts(x)
        low, high = query.chunk(2, 1)
        return self.dd(attend(torch.cat([low + high, high - low], 1), key, value))


class Relu(nn.Module):
    """Two matrices, biases."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.up_ = nn.Linear(config.width, config.inner)
        self.tt = nn.Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.tt(F.relu(self.up_(x)))


class Turned(nn.Module):
    """A weight that is kept as `[in, out]`."""

    def __init__(self, outs: int, ins: int) -> None:
        super().__init__()
        self.outs, self.ins = outs, ins
        self.w = nn.Parameter(torch.randn(ins, outs) / ins**0.5)
        self.b = nn.Parameter(torch.zeros(outs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b, x.view(-1, x.shape[-1]), self.w).view(*x.shape[:-1], self.outs)


class TurnedPair(nn.Module):
    """Two matrices, both turned."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.pp = Turned(config.inner, config.width)
        self.qq = Turned(config.width, config.inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.qq(F.gelu(self.pp(x)))


class Halves(nn.Module):
    """Gate and up in one matrix, one after the other."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.gu = nn.Linear(config.width, 2 * config.inner, bias=False)
        self.tt = nn.Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gu(x).chunk(2, -1)
        return self.tt(F.silu(gate) * up)


class Pairs(Halves):
    """Gate and up in one matrix, in turns."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gu(x).unflatten(-1, (-1, 2)).unbind(-1)
        return self.tt(F.silu(gate) * up)


class Turns(Halves):
    """Gate and up in one matrix, in turns, taken by stride."""

    def forward(self, x: Tensor) -> Tensor:
        both = self.gu(x)
        return self.tt(F.silu(both[..., ::2]) * both[..., 1::2])


class Scaled(Relu):
    """A learnt factor on the activations, shared by all of them."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.tt(F.relu(self.up_(x)) * self.factor)


class Listed(nn.Module):
    """A router and a list of experts, each run on the tokens that chose it."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.pick = nn.Linear(config.width, config.experts, bias=False)
        self.each = nn.ModuleList(Halves(config) for _ in range(config.experts))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.pick(flat).softmax(-1).topk(2, dim=-1)
        result = torch.zeros_like(flat)
        for index, expert in enumerate(self.each):
            token, slot = torch.where(chosen == index)
            if token.numel():
                result.index_add_(0, token, expert(flat[token]) * weights[token, slot, None])
        return result.view_as(x)


class OddForCausalLM(PreTrainedModel):
    """Blocks of one attention and one feed-forward, named by the class attributes `attention` and `feed`."""

    config_class = OddConfig
    base_model_prefix = "body"
    attention: type[nn.Module] = Plain
    feed: type[nn.Module] = Relu
    parallel = False

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.body: nn.Module = Body(config, self.attention, self.feed, parallel=self.parallel)
        self.out = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: object) -> CausalLMOutput:
        logits = self.out(self.body(input_ids))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


class Body(PreTrainedModel):
    """Tokens in, states out."""

    config_class = OddConfig
    base_model_prefix = "body"

    def __init__(self, config: OddConfig, attention: type[nn.Module], feed: type[nn.Module], *, parallel: bool) -> None:
        super().__init__(config)
        self.tok = nn.Embedding(config.vocab_size, config.width)
        self.steps = nn.ModuleList(Step(config, attention, feed, parallel=parallel) for _ in range(config.depth))
        self.fin = nn.RMSNorm(config.width)
        self.post_init()

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tok(input_ids)
        for step in self.steps:
            x = step(x)
        return self.fin(x)


class Step(nn.Module):
    """One block; with `parallel`, both halves read the same normed input."""

    def __init__(self, config: OddConfig, attention: type[nn.Module], feed: type[nn.Module], *, parallel: bool) -> None:
        super().__init__()
        self.n1, self.n2 = nn.RMSNorm(config.width), nn.LayerNorm(config.width)
        self.one, self.two = attention(config), feed(config)
        self.parallel = parallel

    def forward(self, x: Tensor) -> Tensor:
        if self.parallel:
            y = self.n1(x)
            return x + self.one(y) + self.two(y)
        x = x + self.one(self.n1(x))
        return x + self.two(self.n2(x))


def _odd(
    name: str, attention: type[nn.Module], feed: type[nn.Module], *, parallel: bool = False
) -> type[OddForCausalLM]:
    return type(
        name, (OddForCausalLM,), {"attention": attention, "feed": feed, "parallel": parallel, "__module__": __name__}
    )


OddPlain = _odd("OddPlain", Plain, Relu)
OddParallel = _odd("OddParallel", Plain, Halves, parallel=True)
OddBaked = _odd("OddBaked", Baked, Relu)
OddLone = _odd("OddLone", Lone, Relu)
OddSloped = _odd("OddSloped", Sloped, Relu)
OddWideNormed = _odd("OddWideNormed", WideNormed, Pairs)
OddHeadNormed = _odd("OddHeadNormed", HeadNormed, Halves)
OddBlocked = _odd("OddBlocked", Blocked, Relu)
OddInterleaved = _odd("OddInterleaved", Interleaved, Pairs)
OddStrided = _odd("OddStrided", Interleaved, Turns)
OddGrouped = _odd("OddGrouped", Grouped, Scaled)
OddPaired = _odd("OddPaired", Paired, Relu)
OddSunk = _odd("OddSunk", Sunk, Relu)
OddTurned = _odd("OddTurned", Plain, TurnedPair)
OddListed = _odd("OddListed", Plain, Listed)


class PlainBody(nn.Module):
    """A base model that is no `PreTrainedModel`: the config's plan does not reach it."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.tok = nn.Embedding(config.vocab_size, config.width)
        self.steps = nn.ModuleList(Step(config, Plain, Relu, parallel=False) for _ in range(config.depth))
        self.fin = nn.RMSNorm(config.width)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tok(input_ids)
        for step in self.steps:
            x = step(x)
        return self.fin(x)


class OddBare(OddForCausalLM):
    """A head over a plain body."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.body = PlainBody(config)
        self.post_init()


class OddUnset(OddForCausalLM):
    """Never sets itself up, as code from before there were plans: nobody reads what its class or its config says."""

    def post_init(self) -> None:
        """Nothing."""
