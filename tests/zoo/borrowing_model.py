"""Models whose modules are called, or fed, in ways that a client's hooks do not reach."""

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class BorrowingConfig(PretrainedConfig):
    model_type = "borrowing"

    def __init__(self, written_out: bool = False, asked: str = "", **kwargs: object) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = 64, 32, 1
        self.written_out, self.asked = written_out, asked
        super().__init__(**kwargs)  # type: ignore[arg-type]  # its fields are untyped


class BorrowingForCausalLM(PreTrainedModel):
    """One projection is called by keyword, the weight of another is handed to a function, and the table is held twice."""

    config_class = BorrowingConfig

    def __init__(self, config: BorrowingConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(64, 32)
        self.holder = nn.Embedding(64, 32)
        self.holder.weight = self.table.weight
        self.called_by_keyword = nn.Linear(32, 48, bias=False)
        self.never_called = nn.Linear(32, 48, bias=False)
        self.down = nn.Linear(48, 32, bias=False)
        self.up = nn.Linear(32, 48, bias=False)
        self.down_again = nn.Linear(48, 32, bias=False)
        self.down_once_more = nn.Linear(48, 32, bias=False)
        self.head = nn.Linear(32, 64, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]  # it has no annotations

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: object) -> CausalLMOutput:
        hidden = self.table(input_ids)
        hidden = hidden + self.down_again(torch.relu(self.up(hidden)))
        hidden = hidden + self.down(torch.relu(nn.functional.linear(hidden, self.never_called.weight)))
        hidden = hidden + self.down_once_more(torch.relu(self.called_by_keyword(input=hidden)))
        return CausalLMOutput(logits=self.head(hidden))


class _Projecting(PreTrainedModel):
    """Two projections; what lies between them a subclass says."""

    config_class = BorrowingConfig

    def __init__(self, config: BorrowingConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(64, 32)
        self.up, self.down = nn.Linear(32, 48, bias=False), nn.Linear(48, 32, bias=False)
        self.head = nn.Linear(32, 64, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]  # it has no annotations

    def project(self, made: Tensor) -> Tensor:
        """From the first projection's result to the second's."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: object) -> CausalLMOutput:
        hidden = self.table(input_ids)
        return CausalLMOutput(logits=self.head(hidden + self.project(self.up(hidden))))


class TurnedForCausalLM(_Projecting):
    """The second projection is given the tokens first and the rows second, written out or not."""

    def project(self, made: Tensor) -> Tensor:
        turned = torch.relu(made).transpose(0, 1)
        turned = turned.contiguous() if self.config.written_out else turned
        return self.down(turned).transpose(0, 1)  # type: ignore[no-any-return]  # a module's call


class AskingForCausalLM(_Projecting):
    """Code asks for the size of the first one's weight: for a view, or for a number (`asked`)."""

    def project(self, made: Tensor) -> Tensor:
        weight = self.up.weight
        match self.config.asked:
            case "view":
                made = made.view(*made.shape[:-1], weight.shape[0] // 8, 8).sin().flatten(-2)
            case "shape":
                made = made * weight.shape[0] ** -0.5
            case "size":
                made = made / weight.size(0)
            case "length":
                made = made / len(weight)
            case _:
                made = made / weight.numel()
        return self.down(torch.relu(made))  # type: ignore[no-any-return]  # a module's call
