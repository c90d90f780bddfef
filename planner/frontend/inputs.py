"""What a model is traced on: tensors for the arguments that its own forward names, in sizes no model's dims are likely to have.

Which arguments there are is read off the signature, their shapes off the config. Where it can be told how images go in, they
do, so that a vision tower takes part; some models want them in another form, so there is a list of attempts, fullest first.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

Inputs: TypeAlias = dict[str, Tensor]

BATCH, LENGTH, TARGETS = 3, 17, 11
"""Rows, tokens, and tokens of the decoder of an encoder-decoder."""
MANY = 12
"""Rows for a model that folds the batch (codebooks): divisible by all small counts."""

_taken: "WeakKeyDictionary[nn.Module, int]" = WeakKeyDictionary()


def example_inputs(model: nn.Module) -> Inputs:
    """The inputs of a trace, on the meta device: those that `trace` found the model to take, else the fullest."""
    every = attempts(model)
    return every[min(_taken.get(model, 0), len(every) - 1)]


def take(model: nn.Module, attempt: int) -> None:
    """Remember the attempt that the model's forward takes."""
    _taken[model] = attempt


def taken(model: nn.Module) -> int | None:
    """The attempt that the model's forward takes; None where it was not traced yet."""
    return _taken.get(model)


def token_inputs(model: nn.Module) -> dict[str, int]:
    """The arguments that take token ids, each with a length of its own in tokens."""
    names = inspect.signature(model.forward).parameters
    found = {"input_ids": LENGTH} if "input_ids" in names else {}
    if "decoder_input_ids" in names and getattr(model.config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = TARGETS
    return found


def attempts(model: nn.Module) -> list[Inputs]:
    """Inputs to try in order; empty for a model that takes neither tokens nor images."""
    names = inspect.signature(model.forward).parameters
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    tokens: Inputs = {name: _ids(BATCH, length) for name, length in token_inputs(model).items()}
    found = [tokens | images for images in _images(config, names)]
    if tokens:
        found += [tokens, {name: _ids(MANY, value.shape[1]) for name, value in tokens.items()}]
    return found


def _ids(rows: int, length: int) -> Tensor:
    return torch.empty((rows, length), dtype=torch.long, device="meta")


def _images(whole: PreTrainedConfig, names: Mapping[str, object]) -> Iterator[Inputs]:
    """Images in each form that the signature and the config allow."""
    config = _vision_config(whole)
    if "pixel_values" not in names or config is None:
        return
    channels = _number(config, "num_channels", "in_channels", "in_chans") or 3
    patch = _number(config, "patch_size") or 1
    if "image_grid_thw" in names:
        kinds: Inputs = {"mm_token_type_ids": _ids(BATCH, LENGTH)} if "mm_token_type_ids" in names else {}
        yield _patches(config, channels, patch) | kinds
        return
    size = _number(config, "image_size") or 4 * patch
    even = patch * max(4, size // patch // 4 * 4)  # patches are merged by 2 or 4 a side
    for side in dict.fromkeys((size, even)):
        for shape in ((BATCH, channels, side, side), (BATCH, 2, channels, side, side)):
            yield {"pixel_values": torch.empty(shape, device="meta")}
            if "image_sizes" in names:
                sizes = torch.tensor([[side, side]] * BATCH)  # read as data, so a real tensor
                yield {"pixel_values": torch.empty(shape, device="meta"), "image_sizes": sizes}


def _patches(config: PreTrainedConfig, channels: int, patch: int) -> Inputs:
    """Images as rows of flattened patches, with a grid of patches each: it is read as data, so it is a real tensor."""
    side = 2 * (_number(config, "spatial_merge_size") or 1)
    frames = _number(config, "temporal_patch_size") or 1
    rows, width = BATCH * side * side, channels * frames * patch * patch
    return {
        "pixel_values": torch.empty((rows, width), device="meta"),
        "image_grid_thw": torch.tensor([[1, side, side]] * BATCH),
    }


def _vision_config(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """The part of a config that describes how images are cut: the one with a patch size."""
    parts = [config, *(part for part in vars(config).values() if isinstance(part, PreTrainedConfig))]
    return next(
        (part for part in parts if _number(part, "patch_size") and _number(part, "hidden_size", "embed_dim")), None
    )


def _number(config: PreTrainedConfig, *names: str) -> int:
    """The first of these fields that the config has; of a pair (height, width) the first. 0 where there is none."""
    for name in names:
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, tuple | list) and value else value
        if type(value) is int:
            return value
    return 0
