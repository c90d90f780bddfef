"""One small attention model and variants of it, each with one fault that a plan makes of right single-device code."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

HEADS, WIDTH = 8, 8


class PlantedConfig(PretrainedConfig):
    model_type = "planted"

    def __init__(self, variant: str = "right", **kwargs: object) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers, self.variant = 64, 48, 1, variant
        super().__init__(**kwargs)  # type: ignore[arg-type]  # its fields are untyped


class PlantedForCausalLM(PreTrainedModel):
    config_class = PlantedConfig

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(64, 48)
        self.ask, self.offer, self.tell = (nn.Linear(48, HEADS * WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(HEADS * WIDTH, 48)
        self.heat = nn.Parameter(torch.ones(1), requires_grad=config.variant != "frozen")
        self.slopes: Tensor
        self.register_buffer("slopes", torch.linspace(0.5, 2.0, HEADS))
        self.head = nn.Linear(48, 64, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]  # it has no annotations

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: object) -> CausalLMOutput:
        hidden = self.table(input_ids)
        query, key, value = (
            made.view(*made.shape[:2], -1, WIDTH).transpose(1, 2)
            for made in (self.ask(hidden), self.offer(hidden), self.tell(hidden))
        )
        scores = VARIANTS[self.config.variant](self, query @ key.transpose(-1, -2))
        mixed = (scores.softmax(-1) @ value).transpose(1, 2)
        return CausalLMOutput(logits=self.head(hidden + self.out(mixed.flatten(2))))


VARIANTS: dict[str, Callable[[PlantedForCausalLM, Tensor], Tensor]] = {
    "right": lambda _, scores: scores,
    "slopes by local count": lambda _, scores: scores * torch.arange(scores.shape[1])[:, None, None],
    "slopes of the first heads": lambda model, scores: scores * model.slopes[: scores.shape[1], None, None],
    "scale by local count": lambda _, scores: scores / scores.shape[1],
    "scale in a tensor": lambda _, scores: scores * torch.tensor(1.0 / scores.shape[1], device=scores.device),
    "scale in a list": lambda _, scores: scores * scores.new_tensor([scores.shape[1] ** -0.5]),
    "scale that fills": lambda _, scores: scores * torch.full((1,), 1.0 / scores.shape[1], device=scores.device),
    "steps by local count": lambda _, scores: scores * torch.arange(scores.shape[1], scores.shape[1] + scores.shape[3]),
    "scale of a width": lambda _, scores: scores * torch.tensor([WIDTH**-0.5]),
    "heads rolled": lambda _, scores: scores.roll(1, 1),
    "heads summed up": lambda _, scores: scores.cumsum(1),
    "heads normed together": lambda _, scores: F.normalize(scores, dim=1),
    "heads in halves": lambda _, scores: torch.cat(scores.chunk(2, 1)[::-1], 1),
    "heads in pairs": lambda _, scores: scores.unflatten(1, (-1, 2)).flip(2).flatten(1, 2),
    "heads one by one": lambda _, scores: torch.stack([scores[:, i] for i in range(scores.shape[1])], 1),
    "heat": lambda model, scores: scores * model.heat,
    "complex heat": lambda model, scores: scores * (torch.view_as_complex(model.heat.repeat(2)) * 2).real,
    "detached": lambda model, scores: scores * model.heat.detach(),
    "frozen": lambda model, scores: scores * model.heat,
}
