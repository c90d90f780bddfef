"""A model whose second projection is given the tokens first and the rows second, written out or not."""

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class TurnedConfig(PretrainedConfig):
    model_type = "turned"

    def __init__(self, written_out: bool = False, **kwargs: object) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = 64, 32, 1
        self.written_out = written_out
        super().__init__(**kwargs)  # type: ignore[arg-type]  # its fields are untyped


class TurnedForCausalLM(PreTrainedModel):
    config_class = TurnedConfig

    def __init__(self, config: TurnedConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(64, 32)
        self.up = nn.Linear(32, 48, bias=False)
        self.down = nn.Linear(48, 32, bias=False)
        self.head = nn.Linear(32, 64, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]  # it has no annotations

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: object) -> CausalLMOutput:
        hidden = self.table(input_ids)
        turned = torch.relu(self.up(hidden)).transpose(0, 1)
        turned = turned.contiguous() if self.config.written_out else turned
        return CausalLMOutput(logits=self.head(hidden + self.down(turned).transpose(0, 1)))
