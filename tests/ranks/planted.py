"""Models that go wrong, once sharded, in one thing that is compared and in no other; the single-device model is right."""

from collections.abc import Mapping
from enum import StrEnum

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from shardproof.planner.loading.load import LoadedModel

SMALL = 1e-4
"""Far above rounding, far below what anybody would notice."""


class Wrong(StrEnum):
    """What goes wrong in the sharded model."""

    WEIGHTS = "the features of the feed-forward are dealt to the ranks in reverse, in all its matrices alike"
    HIDDEN = "the first layer adds what the second takes away"
    LOGITS = "the plain forward"
    PADDED = "positions under a left-padded mask"
    RAGGED = "positions under a right-padded mask"
    PREFILL = "the prefill"
    DECODED = "a step of cached decoding"
    GENERATED = "the last step of generation"
    LOSS = "the value of the loss, not its gradient"
    GRADIENT = "the gradient of the loss, counted by every rank (E5)"
    SECOND = "the gradient of the second backward"
    TRAINING_LOSS = "the value of the loss in training mode, not its gradient"
    TRAINING_GRADIENT = "the gradient of the loss in training mode"
    EAGER = "eager attention"
    SAVED = "what is saved"


class PlantedConfig(LlamaConfig):
    model_type = "planted_llama"
    wrong: str = ""


class Planted(LlamaForCausalLM):
    """A Llama that, as soon as it is sharded, does what `config.wrong` says."""

    config_class = PlantedConfig

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__(config)
        self.trained = 0
        if config.wrong == Wrong.HIDDEN:
            first, second = self.model.layers[:2]
            first.register_forward_hook(lambda _, __, given: given + SMALL if self.sharded else given)
            second.register_forward_pre_hook(lambda _, args: (args[0] - SMALL, *args[1:]) if self.sharded else None)

    @property
    def sharded(self) -> bool:
        return bool(getattr(self, "_tp_size", None))

    @classmethod
    def from_pretrained(cls, *args, **kwargs):  # type: ignore[no-untyped-def]  # as its base
        model = super().from_pretrained(*args, **kwargs)
        if model.sharded and model.config.wrong == Wrong.WEIGHTS:
            for name, parameter in model.named_parameters():
                if ".mlp." in name:
                    _turn(parameter)
        return model

    def save_pretrained(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # as its base
        if self.sharded and self.config.wrong == Wrong.SAVED:
            with torch.no_grad():
                self.model.norm.weight.add_(SMALL)
        super().save_pretrained(*args, **kwargs)

    def forward(self, input_ids=None, attention_mask=None, use_cache=None, labels=None, **kwargs):  # type: ignore[no-untyped-def]
        given = super().forward(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, labels=labels, **kwargs
        )
        if self.sharded:
            self.trained += labels is not None
            self._spoil(given, input_ids, attention_mask, _What(bool(use_cache), labels is not None))
        return given

    def _spoil(
        self, given: Mapping[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor | None, what: "_What"
    ) -> None:
        wrong = self.config.wrong
        if wrong == _asked(ids, mask, what, eager=self.config._attn_implementation == "eager"):
            given["logits"].mul_(-1.0 if wrong == Wrong.GENERATED else 1.0 + SMALL)
        if not what.trains:
            return
        if wrong == (Wrong.TRAINING_LOSS if self.training else Wrong.LOSS):
            given["loss"].data.add_(SMALL)
        second = Wrong.SECOND if self.trained > 1 else None
        if wrong in ((Wrong.TRAINING_GRADIENT,) if self.training else (Wrong.GRADIENT, second)):
            given["loss"].register_hook(lambda gradient: gradient * dist.get_world_size())


class _What:
    """Whether a call caches, and whether it trains."""

    def __init__(self, caches: bool, trains: bool) -> None:
        self.caches, self.trains = caches, trains


def _asked(ids: torch.Tensor, mask: torch.Tensor | None, what: _What, *, eager: bool) -> Wrong | None:
    """The answer that a call is for."""
    if what.trains:
        return None
    if what.caches:
        step = Wrong.PREFILL if ids.shape[1] > 1 else Wrong.DECODED
        return step if mask is None else Wrong.GENERATED
    if eager:
        return Wrong.EAGER
    if mask is None:
        return Wrong.LOGITS
    return Wrong.PADDED if bool(mask[:, -1].all()) else Wrong.RAGGED


def _turn(parameter: nn.Parameter) -> None:
    """This rank gets the part of the rank that is as far from the end."""
    assert isinstance(parameter, DTensor)
    mine = parameter.to_local().detach()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine.contiguous())
    mine.copy_(parts[dist.get_world_size() - 1 - dist.get_rank()])


def planted(wrong: Wrong) -> LoadedModel:
    """A model with this fault."""
    return LoadedModel(wrong.name, PlantedConfig(wrong=wrong.value), Planted)
