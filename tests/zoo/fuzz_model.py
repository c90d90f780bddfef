# mypy: disable-error-code="no-any-return, no-untyped-call, has-type"
# Modeling code has Transformers' habits.
"""A decoder whose feed-forward layer is a list of steps from a table, for random models."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

Step = Callable[["FuzzFeed", Tensor, Tensor], Tensor]

STEPS: dict[str, Step] = {
    "silu": lambda me, h, x: F.silu(h),
    "gate": lambda me, h, x: h * me.gate(x).sigmoid(),
    "scale": lambda me, h, x: h * 0.5,
    "scale by width": lambda me, h, x: h * (8.0 / h.shape[-1]),
    "bias": lambda me, h, x: h + me.bias,
    "weight": lambda me, h, x: h * me.weight,
    "softmax": lambda me, h, x: h.softmax(-1),
    "mean": lambda me, h, x: h - h.mean(-1, keepdim=True),
    "norm": lambda me, h, x: F.rms_norm(h, h.shape[-1:]),
    "mean of input": lambda me, h, x: h * (1 + x.mean(-1, keepdim=True)),
    "mean of input without gradient": lambda me, h, x: h * (1 + x.detach().mean(-1, keepdim=True)),
    "heads": lambda me, h, x: h.unflatten(-1, (-1, 4)).softmax(-1).flatten(-2),
    "heads by number": lambda me, h, x: h.view(*h.shape[:-1], 12, 4).tanh().flatten(-2),
    "halves": lambda me, h, x: torch.cat([part.tanh() for part in h.chunk(2, -1)], -1),
    "halves product": lambda me, h, x: torch.cat([h.chunk(2, -1)[0] * h.chunk(2, -1)[1]] * 2, -1),
    "flip": lambda me, h, x: h.flip(-1),
    "roll tokens": lambda me, h, x: h.roll(1, 1),
    "first feature": lambda me, h, x: h * h[..., :1],
    "sum of tokens": lambda me, h, x: h + h.mean(1, keepdim=True),
    "second layer only": lambda me, h, x: h.softmax(-1) if me.index == 1 else h,
    "training only": lambda me, h, x: h.softmax(-1) if me.training else h,
    "number": lambda me, h, x: h / (1 + h.detach().abs().max().item()),
    "number of input": lambda me, h, x: h / (1 + x.detach().abs().max().item()),
    "pad": lambda me, h, x: F.pad(h, (1, -1)),
    "cumsum": lambda me, h, x: h.cumsum(-1),
    "cumsum of tokens": lambda me, h, x: h.cumsum(1),
    "clamp": lambda me, h, x: h.clamp(-1, 1),
    "straight through": lambda me, h, x: h + (h.round() - h).detach(),
    "in place": lambda me, h, x: h.mul(1.0).relu_(),
}
"""What a step makes of the features `h` `[rows, tokens, features]` of the input `x` `[rows, tokens, width]`."""


class FuzzConfig(PreTrainedConfig):
    """The steps, separated by semicolons."""

    model_type = "tests_fuzz"
    steps: str = ""
    vocab_size: int = 64
    hidden_size: int = 32
    intermediate_size: int = 48
    num_hidden_layers: int = 2


class FuzzFeed(nn.Module):
    """Up, the steps, down."""

    def __init__(self, config: FuzzConfig, index: int) -> None:
        super().__init__()
        self.index, self.steps = index, tuple(filter(None, config.steps.split(";")))
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.weight = nn.Parameter(torch.ones(config.intermediate_size))
        self.bias = nn.Parameter(torch.zeros(config.intermediate_size))

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        for step in self.steps:
            h = STEPS[step](self, h, x)
        return self.down(h)


class FuzzForCausalLM(PreTrainedModel):
    """Embedding, layers, head."""

    config_class = FuzzConfig
    base_model_prefix = ""

    def __init__(self, config: FuzzConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(FuzzFeed(config, index) for index in range(config.num_hidden_layers))
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> CausalLMOutput:
        x = self.words(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        logits, loss = self.head(x), None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
