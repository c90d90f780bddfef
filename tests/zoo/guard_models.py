# mypy: disable-error-code="no-any-return, no-untyped-call, override"
# Modeling code has Transformers' habits.
"""Small models that one guard of the proof refuses each."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from tests.zoo.fuzz_model import FuzzConfig, FuzzForCausalLM, FuzzPreTrained
from tests.zoo.fuzz_parts import FuzzExperts


class LosingForCausalLM(FuzzForCausalLM):
    """Its `_init_weights` writes over weights that were loaded."""

    def __init__(self, config: FuzzConfig) -> None:
        super().__init__(config)
        self.register_buffer("made", torch.ones(1), persistent=False)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | LosingForCausalLM):
            self.head.weight.data.fill_(0.5)


class FloatForCausalLM(FuzzForCausalLM):
    """A parameter is made in float32, whatever dtype is asked for."""

    def __init__(self, config: FuzzConfig) -> None:
        super().__init__(config)
        self.gain = nn.Parameter(torch.ones(1, dtype=torch.float32))

    def _init_weights(self, module: nn.Module) -> None:
        pass


class Words(nn.Embedding):
    """A table whose forward uses the rows that it looks up twice."""

    def forward(self, ids: Tensor) -> Tensor:
        rows = super().forward(ids)
        return rows.detach() + 0.5 * rows


class UnloadableForCausalLM(FuzzForCausalLM):
    """Its `_init_weights` raises."""

    def _init_weights(self, module: nn.Module) -> None:
        raise RuntimeError("no initial weights")


class StatelessForCausalLM(FuzzForCausalLM):
    """It takes no weights in float64."""

    def load_state_dict(self, *args: Any, **kwargs: Any) -> object:
        if self.head.weight.dtype is torch.float64:
            raise RuntimeError("no state")
        return super().load_state_dict(*args, **kwargs)


class UnreadForCausalLM(FuzzPreTrained):
    """It does not call `post_init`, which reads the plan."""

    def __init__(self, config: FuzzConfig) -> None:
        super().__init__(config)
        self.up = nn.Linear(4, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.up(input_ids[..., None].float())


class IdleForCausalLM(FuzzForCausalLM):
    """It has experts that its forward does not call."""

    def __init__(self, config: FuzzConfig) -> None:
        super().__init__(config)
        self.model.idle = FuzzExperts(config, 0)


class TwiceForCausalLM(FuzzForCausalLM):
    """One layer stands in the list twice."""

    def __init__(self, config: FuzzConfig) -> None:
        super().__init__(config)
        self.model.layers[1] = self.model.layers[0]


class UntracedForCausalLM(FuzzForCausalLM):
    """Its forward needs data."""

    def forward(self, input_ids: Tensor, **kwargs: object) -> CausalLMOutputWithPast:
        raise NotImplementedError("needs data")


class UntrainedForCausalLM(FuzzForCausalLM):
    """Its forward in training needs data."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: object) -> CausalLMOutputWithPast:
        if self.training and input_ids.is_meta:
            raise NotImplementedError("needs data")
        return super().forward(input_ids, labels=labels)


class ReadingForCausalLM(FuzzForCausalLM):
    """Its forward reads what the first layer keeps in itself, which other stages do not run."""

    def forward(self, input_ids: Tensor, **kwargs: object) -> CausalLMOutputWithPast:
        out = super().forward(input_ids)
        return CausalLMOutputWithPast(logits=out.logits * (1 + self.model.layers[0].feed.log.dim()))


class PictureForCausalLM(FuzzPreTrained):
    """It takes nothing that a trace knows to give."""

    def __init__(self, config: FuzzConfig) -> None:
        super().__init__(config)
        self.up = nn.Linear(4, 4)
        self.post_init()

    def forward(self, unheard_of: Any) -> Tensor:
        return self.up(unheard_of.rows["first"])
