"""The state dict that the sharded model saves: read back on one device, it must be what was loaded."""

import copy
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.quiet import quiet
from shardproof.verify.run.compare.tensors import Comparison, relative_error

SAVED = "saved weights"
_ROUNDING = 1e-12
"""Relative. A model may rewrite a weight as it runs (a head that is normalised once); repeating that changes it by rounding."""


def saved(model: PreTrainedModel, single: PreTrainedModel, loaded: LoadedModel, *, rank: int) -> list[Comparison]:
    """Save the sharded model and load it on one device; every rank must call this, the first one compares.

    Weights that the single-device model does not get back from its own checkpoint either are left out. A model that cannot be
    saved on one device (GGUF weights, an old form of tied weights) is not compared.
    """
    with tempfile.TemporaryDirectory(prefix="shardproof-saved-") as folder, quiet():
        try:
            model.save_pretrained(folder)
        except Exception:  # whatever the client raises on one device too is not the plan's doing
            if _refuses(single):
                return []
            raise
        if rank:
            return []
        wrong = _differing(_read(loaded, Path(folder), single), single)
    lost = _lost_alone(single, loaded) if wrong else set()
    worst = {name: error for name, error in wrong.items() if name not in lost}
    return [Comparison(SAVED, error, 0.0, name) for name, error in worst.items()] or [Comparison(SAVED, 0.0, 0.0)]


def _refuses(single: PreTrainedModel) -> bool:
    """Whether the client cannot save this model on one device either."""
    with tempfile.TemporaryDirectory(prefix="shardproof-saved-") as folder:
        try:
            single.save_pretrained(folder)
        except Exception:
            return True
    return False


def _lost_alone(single: PreTrainedModel, loaded: LoadedModel) -> set[str]:
    with tempfile.TemporaryDirectory(prefix="shardproof-saved-") as folder, quiet():
        single.save_pretrained(folder)
        return set(_differing(_read(loaded, Path(folder), single), single))


def _read(loaded: LoadedModel, folder: Path, like: PreTrainedModel) -> nn.Module:
    config = copy.deepcopy(loaded.config)
    read: nn.Module = loaded.model_class.from_pretrained(folder, config=config, dtype=like.dtype)
    return read


def _differing(read: nn.Module, want: nn.Module) -> dict[str, float]:
    have: dict[str, torch.Tensor] = dict(read.state_dict())
    errors = {
        name: relative_error(have[name], value) if name in have else float("inf")
        for name, value in want.state_dict().items()
    }
    return {name: error for name, error in errors.items() if error > _ROUNDING}
