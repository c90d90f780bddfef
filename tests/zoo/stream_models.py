"""Small models whose layers need more than one value, or are called in unusual ways. Names say nothing, `self` included."""

# mypy: disable-error-code="no-any-return,no-untyped-call,arg-type"
# NB: calls of torch modules return Any, and Transformers has untyped bases: this file is modeling code.

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

MIXES = ("plain", "skip", "late", "between", "outside", "again", "shelf", "raw", "shared", "lists", "row")
"""How the layers are joined, see `Core.forward`; raw: the head reads the embedding's weight; shared: two layers stand twice;
lists: two and two in lists of their own; row: in a module that calls them itself."""


class StreamConfig(PreTrainedConfig):
    """Four layers of width 16, joined as `mix` says."""

    model_type = "streams"

    def __init__(
        self, vocab_size: int = 61, width: int = 16, depth: int = 4, mix: str = "plain", **kwargs: object
    ) -> None:
        self.vocab_size, self.width, self.depth, self.mix = vocab_size, width, depth, mix
        self.hidden_size = width
        super().__init__(**kwargs)


class Fold(nn.Module):
    """A layer; `trace` is a second stream, where there is one."""

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        self.aa, self.bb = (nn.Linear(config.width, config.width) for _ in range(2))

    def forward(me, q: Tensor, trace: Tensor | None = None, shelf: dict[str, Tensor] | None = None) -> Tensor:  # noqa: N805
        q = q + me.aa(q).tanh()
        if shelf is not None:
            q = q + me.bb(shelf.setdefault("z", q)).cos()
        return q if trace is None else q + me.bb(trace)


class Core(PreTrainedModel):
    """The base model."""

    config_class = StreamConfig

    def __init__(self, config: StreamConfig) -> None:
        super().__init__(config)
        self.zork = nn.Embedding(config.vocab_size, config.width)
        self.pile = nn.ModuleList(Fold(config) for _ in range(config.depth))
        if config.mix == "shared":
            self.pile = nn.ModuleList([*self.pile[:2], *self.pile[:2]])
        if config.mix == "lists":
            self.piles = nn.ModuleList((self.pile[:2], self.pile[2:]))
            del self.pile
        if config.mix == "row":
            self.row = nn.Sequential(*self.pile)
            del self.pile
        self.fin = nn.LayerNorm(config.width)
        self.post_init()

    def forward(self, input_ids: Tensor, **kwargs: object) -> CausalLMOutput:
        w = first = self.zork(input_ids)
        match self.config.mix:
            case "lists":
                for pile in self.piles:
                    for piece in pile.children():
                        w = piece(w)
                return CausalLMOutput(logits=self.fin(torch.relu(w)))
            case "row":
                return CausalLMOutput(logits=self.fin(torch.relu(self.row(w))))
        shelf: dict[str, Tensor] = {}
        for place, piece in enumerate(self.pile):
            match self.config.mix:
                case "skip":  # the embeddings go into every layer
                    w = piece(w, first)
                case "late":  # and here into the last one only
                    w = piece(w, first if place == self.config.depth - 1 else None)
                case "between":  # what a layer gets is not what the one before it gave
                    w = piece(w * 1.5)
                case "shelf":  # what the first layer leaves is read by the others
                    w = piece(w, shelf=shelf)
                case "outside":  # the embeddings join between the layers, through no argument
                    w = piece(w) + first
                case "again":  # the first layer runs again behind every other
                    w = self.pile[0](piece(w))
                case _:
                    w = piece(w)
        return CausalLMOutput(logits=self.fin(w))


class StreamForCausalLM(PreTrainedModel):
    """The head model."""

    config_class = StreamConfig
    base_model_prefix = "core"

    def __init__(self, config: StreamConfig) -> None:
        super().__init__(config)
        self.core = Core(config)
        self.out = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, **kwargs: object) -> CausalLMOutput:
        words = self.core(input_ids).logits
        raw = self.config.mix == "raw"
        return CausalLMOutput(logits=nn.functional.linear(words, self.core.zork.weight) if raw else self.out(words))


class Pair(nn.Module):
    """A layer that returns two things, the hidden states first."""

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        self.aa = nn.Linear(config.width, config.width)

    def forward(self, q: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        q = q + self.aa(q).tanh() * bias
        return q, bias


class Nest(nn.Module):
    """The layers lie here, one level below the base model."""

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        self.zork, self.spot = nn.Embedding(config.vocab_size, config.width), nn.Embedding(64, config.width)
        self.blk = nn.ModuleList(Pair(config) for _ in range(config.depth))
        self.still, self.fin = nn.Dropout(0.0), nn.LayerNorm(config.width)
        self.depth = config.depth

    def enter(self, ids: Tensor) -> Tensor:
        """A helper method, with a walrus and a sum."""
        if (vec := self.zork(ids)).ndim != 3:
            raise ValueError("ids are [batch, length]")
        where = torch.arange(ids.shape[1], device=ids.device)
        return vec + self.spot(where)

    def forward(self, ids: Tensor) -> Tensor:
        w = self.still(self.enter(ids))
        seen = torch.ones_like(ids, dtype=w.dtype).unsqueeze(-1)
        for _, (piece, _) in enumerate(zip(self.blk[: self.depth], range(self.depth), strict=False)):
            w, _ = piece(w, seen)
        if (done := self.fin(w)) is None:
            raise ValueError
        return done


class Shell(PreTrainedModel):
    """The base model: all it owns is the nest."""

    config_class = StreamConfig

    def __init__(self, config: StreamConfig) -> None:
        super().__init__(config)
        self.inner = Nest(config)
        self.post_init()

    def forward(self, input_ids: Tensor, **kwargs: object) -> CausalLMOutput:
        return CausalLMOutput(logits=self.inner(input_ids))


class NestedForCausalLM(PreTrainedModel):
    """Layers nested deeper, tuples from layers, a walrus, a helper, a slice, a zip in an enumerate."""

    config_class = StreamConfig
    base_model_prefix = "core"

    def __init__(self, config: StreamConfig) -> None:
        super().__init__(config)
        self.core = Shell(config)
        self.out = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, **kwargs: object) -> CausalLMOutput:
        words = self.out(self.core(input_ids).logits)
        return CausalLMOutput(logits=words)
