"""Random inputs for both models: tokens, masks, and what else the forward takes."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from shardproof.planner.inputs.example import Sizes
from shardproof.planner.inputs.numbers import fullest_inputs
from shardproof.planner.inputs.run_modes import takes
from shardproof.planner.twins.sizes import LENGTH
from shardproof.verify.run.held_state import HeldState
from shardproof.verify.stages.exact import Wide

SIZES = Sizes(2, LENGTH, LENGTH)

DECODED = 4
"""Tokens that are decoded one by one, after the rest was prefilled."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of one batch, the same on every rank.

    Attributes:
        name: the forward's argument for the tokens that the model continues; empty where it takes no tokens.
        ids: these tokens, `[rows, length]`.
        more: the other arguments of the forward: an encoder's tokens, images, audio.
        mask: `attention_mask` for `input_ids`, `[rows, length]`, with rows padded on the left by 0 and 3 tokens; empty where
            there are no `input_ids`.
        ragged: the same with rows padded on the right by 2 and 5 tokens.
        target_mask: the mask of a decoder's own tokens, where the model has an encoder and takes one. The last row has a gap,
            not padding, so that every position still attends to a token.
    """

    name: str
    ids: torch.Tensor
    more: Mapping[str, torch.Tensor]
    mask: torch.Tensor
    ragged: torch.Tensor
    target_mask: torch.Tensor
    refused: Exception | None = None
    """What the model raised on images, where it takes them and the inputs are text alone."""

    @property
    def encoded(self) -> bool:
        """Whether an encoder reads other tokens than those that are continued."""
        return self.name != "input_ids"

    @property
    def prompt(self) -> int:
        """Tokens that are prefilled; the rest are decoded one by one."""
        return self.ids.shape[1] - DECODED

    def whole(self) -> dict[str, torch.Tensor]:
        """The arguments of a forward over everything."""
        return {self.name: self.ids, **self.more} if self.name else dict(self.more)

    def masking(self, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """The arguments of a forward over everything under a mask, with the decoder's own mask where there is one."""
        target = {"decoder_attention_mask": self.target_mask} if self.target_mask.numel() else {}
        return {"attention_mask": mask, **target}

    def compared_positions(self, mask: torch.Tensor) -> torch.Tensor:
        """Which positions are compared under a mask: logits at padded positions mean nothing."""
        return (self.target_mask if self.encoded else mask).bool()

    def first(self, count: int) -> dict[str, torch.Tensor]:
        """The arguments of a forward over the first tokens."""
        length = self.ids.shape[1]
        cut = {name: value[:, :count] if _along(value, length) else value for name, value in self.more.items()}
        return {self.name: self.ids[:, :count], **(self.more if self.encoded else cut)}

    def next(self, position: int) -> dict[str, torch.Tensor]:
        """The arguments of the step that decodes one token. An encoder runs again; images are in the KV cache."""
        token = self.ids[:, position : position + 1]
        return {self.name: token, **(self.more if self.encoded else {})}


def _along(value: object, length: int) -> bool:
    """Whether this is one integer for each token."""
    return (
        isinstance(value, torch.Tensor)
        and value.ndim == 2
        and value.shape[1] == length
        and not value.is_floating_point()
    )


def inputs(model: nn.Module, *, seed: int = 0) -> Inputs:
    """Random inputs for a model, on its device. The forwards that try them leave nothing in the model."""
    began = HeldState(model)
    exact: AbstractContextManager[object] = Wide() if next(model.parameters()).dtype is torch.float64 else nullcontext()
    with exact:
        given, refused = fullest_inputs(model, SIZES, seed=seed)
    began.restore()
    name = next((each for each in ("decoder_input_ids", "input_ids") if each in given), "")
    nothing = torch.empty((SIZES.rows, 0), dtype=torch.long)
    mask, ragged = (torch.ones_like(given.get("input_ids", nothing)) for _ in range(2))
    mask[1:, :3] = 0
    ragged[0, -2:] = 0
    ragged[1, -5:] = 0
    ids = given.pop(name, nothing)
    apart = name == "decoder_input_ids" and takes(model, "decoder_attention_mask")
    target_mask = torch.ones_like(ids) if apart else nothing
    target_mask[1:, 2:5] = 0
    return Inputs(name, ids, given, mask, ragged, target_mask, refused)
