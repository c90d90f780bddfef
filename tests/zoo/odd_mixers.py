"""More small models with names that say nothing: mixers, experts and residuals beyond plain attention. See `odd_models`."""

# mypy: disable-error-code="no-any-return,no-untyped-call,arg-type"
# NB: calls of torch modules return Any, and Transformers has untyped bases: this file is modeling code.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.odd_models import Body, Halves, OddConfig, OddForCausalLM, Plain, Relu, attend


class Cubes(nn.Module):
    """Attention whose four weights are cubes in one module."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        w, h, d = config.width, config.heads, config.head_width
        self.a, self.b, self.c = (nn.Parameter(torch.randn(w, h, d) / w**0.5) for _ in range(3))
        self.e = nn.Parameter(torch.randn(h, d, w) / (h * d) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (torch.einsum("bsw,whd->bhsd", x, part) for part in (self.a, self.b, self.c))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return torch.einsum("bhsd,hdw->bsw", mixed, self.e)


class Own(nn.Module):
    """A matrix of a module of its own, without a bias."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.randn(outs, ins) / ins**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.m)


class OwnPair(nn.Module):
    """Two such matrices: the second takes a shard and sums over it."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.l1: nn.Module = Own(config.width, config.inner)
        self.l2: nn.Module = Own(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(F.silu(self.l1(x)))


class OwnUp(OwnPair):
    """The first matrix is its own, the second is a plain layer with a bias."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.l2 = nn.Linear(config.inner, config.width)


class Held(nn.Module):
    """Only holds a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.randn(width))


class Borrowed(nn.Module):
    """Multiplies by a weight that belongs to a module which never runs."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.up_, self.tt = nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)
        self.held = Held(config.inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.tt(F.relu(self.up_(x)) * self.held.taps)


class Leaning(Plain):
    """A slope per head from a buffer: every rank would read the first heads' slopes."""

    ramp: Tensor

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.register_buffer("ramp", 2.0 ** -torch.arange(1, config.heads + 1, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        return self.dd(attend(*self.parts(x), bias=self.ramp[:, None, None] * (steps[None] - steps[:, None])))


class Decaying(nn.Module):
    """A diagonal state-space mixer: a short convolution, a gate, a step size and a decay for each channel, scanned."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.n = config.inner
        self.p1 = nn.Linear(config.width, config.inner, bias=False)
        self.p2 = nn.Linear(config.width, config.inner, bias=False)
        self.p3 = nn.Linear(config.width, config.inner)
        self.p4 = nn.Linear(config.inner, config.width, bias=False)
        self.taps = nn.Parameter(torch.randn(config.inner, 3) / 3)
        self.rate = nn.Parameter(torch.randn(config.inner))
        self.skip = nn.Parameter(torch.ones(config.inner))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        given = F.pad(self.p1(x), (0, 0, 2, 0))
        mixed = torch.stack([given[:, tap : tap + length] * self.taps[:, tap] for tap in range(3)]).sum(0)
        step = F.softplus(self.p3(x))
        decay = torch.exp(-step * self.rate.exp())
        state, states = torch.zeros_like(mixed[:, 0]), []
        for position in range(length):
            state = decay[:, position] * state + (step * mixed)[:, position]
            states.append(state)
        return self.p4((torch.stack(states, 1) + mixed * self.skip) * F.silu(self.p2(x)))


class Recalling(nn.Module):
    """Gated linear attention: a decay for each head, a state of keys times values."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.d = config.head_width
        wide = config.heads * self.d
        self.g1, self.g2, self.g3 = (nn.Linear(config.width, wide, bias=False) for _ in range(3))
        self.g4 = nn.Linear(config.width, config.heads)
        self.g5 = nn.Linear(wide, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, self.d)
        query, key, value = (part(x).view(shape).transpose(1, 2) for part in (self.g1, self.g2, self.g3))
        total = F.logsigmoid(self.g4(x)).transpose(1, 2).cumsum(-1)
        length = x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        fade = (total[..., None] - total[..., None, :]).masked_fill(later, float("-inf")).exp()
        return self.g5(((query @ key.transpose(-1, -2)) * fade @ value).transpose(1, 2).flatten(2))


class Stack(nn.Module):
    """Stacked experts, called by number."""

    def __init__(self, config: OddConfig, *, biased: bool) -> None:
        super().__init__()
        e, w, n = config.experts, config.width, config.inner
        self.num_experts = e
        self.w1 = nn.Parameter(torch.randn(e, 2 * n, w) / w**0.5)
        self.w2 = nn.Parameter(torch.randn(e, w, n) / n**0.5)
        self.c2 = nn.Parameter(torch.zeros(e, w)) if biased else None

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for index in range(self.num_experts):
            token, slot = torch.where(chosen == index)
            left, right = F.linear(x[token], self.w1[index]).chunk(2, -1)
            part = F.linear(F.silu(left) * right, self.w2[index])
            if self.c2 is not None:
                part = part + self.c2[index]
            result.index_add_(0, token, part * weights[token, slot, None])
        return result


class Picked(nn.Module):
    """A router and stacked experts, and one expert that all tokens visit through a gate of its own."""

    biased = False

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.pick = nn.Linear(config.width, config.experts, bias=False)
        self.many = Stack(config, biased=self.biased)
        self.all_ = Halves(config)
        self.door = nn.Linear(config.width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.pick(flat).softmax(-1).topk(2, dim=-1)
        return (self.many(flat, chosen, weights) + torch.sigmoid(self.door(flat)) * self.all_(flat)).view_as(x)


class PickedBiased(Picked):
    """The same with a bias behind every expert: a slice of each expert would add it once per rank."""

    biased = True


class Streams(nn.Module):
    """Several residual streams, mixed by learnt weights around each half of a block."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.norm = inner, nn.RMSNorm(width)
        self.mix = nn.Parameter(torch.eye(3) + 0.1)
        self.read, self.write = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.turn = nn.Linear(width, 3, bias=False)

    def forward(self, streams: Tensor) -> Tensor:
        given = self.norm((streams * self.read[:, None, None, None]).sum(0))
        share = torch.tanh(self.turn(given)).permute(2, 0, 1)[..., None] + self.write[:, None, None, None]
        return torch.einsum("ij,jbsw->ibsw", self.mix, streams) + share * self.inner(given)


class StreamsBody(Body):
    """Blocks over three streams, which are summed at the end."""

    def __init__(self, config: OddConfig, attention: type[nn.Module], feed: type[nn.Module], *, parallel: bool) -> None:
        super().__init__(config, attention, feed, parallel=parallel)
        self.steps = nn.ModuleList(
            nn.Sequential(Streams(attention(config), config.width), Streams(feed(config), config.width))
            for _ in range(config.depth)
        )
        self.post_init()

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tok(input_ids)[None].expand(3, -1, -1, -1)
        for step in self.steps:
            x = step(x)
        return self.fin(x.sum(0))


class OddStreams(OddForCausalLM):
    """A head over several streams."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.body = StreamsBody(config, Plain, Halves, parallel=False)
        self.post_init()


def _odd(name: str, attention: type[nn.Module], feed: type[nn.Module]) -> type[OddForCausalLM]:
    return type(name, (OddForCausalLM,), {"attention": attention, "feed": feed, "__module__": __name__})


OddCubes = _odd("OddCubes", Cubes, Relu)
OddOwnPair = _odd("OddOwnPair", Plain, OwnPair)
OddOwnUp = _odd("OddOwnUp", Plain, OwnUp)
OddBorrowed = _odd("OddBorrowed", Plain, Borrowed)
OddLeaning = _odd("OddLeaning", Leaning, Relu)
OddDecaying = _odd("OddDecaying", Decaying, Relu)
OddRecalling = _odd("OddRecalling", Recalling, Relu)
OddPicked = _odd("OddPicked", Plain, Picked)
OddPickedBiased = _odd("OddPickedBiased", Plain, PickedBiased)
