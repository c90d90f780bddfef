"""What a model is given: the arguments that its own forward names, as tensors on the meta device.

Which arguments there are is read off the signature, their shapes off the config. Where it can be told how images go in, they
do, so that a vision tower takes part; some models want them in another form, so there is a list of attempts, fullest first.
A trace takes them as they are, in sizes no model's dims are likely to have; `planner.frontend.values` fills them for a run.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

Inputs: TypeAlias = dict[str, Tensor]

TILES = 3
"""Parts of an image that is given whole and cut by the smallest grid there is, of two tiles."""
MANY = 12
"""Rows for a model that folds the batch (codebooks): divisible by all small counts."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows, tokens, and tokens of the decoder of an encoder-decoder."""

    rows: int = 3
    length: int = 17
    targets: int = 11


TRACED = Sizes()

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


def token_inputs(model: nn.Module, sizes: Sizes = TRACED) -> dict[str, int]:
    """The arguments that take token ids, each with a length of its own in tokens."""
    names = inspect.signature(model.forward).parameters
    found = {"input_ids": sizes.length} if "input_ids" in names else {}
    if "decoder_input_ids" in names and getattr(model.config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = sizes.targets
    return found


def attempts(model: nn.Module, sizes: Sizes = TRACED) -> list[Inputs]:
    """Inputs to try in order; empty for a model that takes neither tokens nor images."""
    names = inspect.signature(model.forward).parameters
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    tokens: Inputs = {name: _ids(sizes.rows, length) for name, length in token_inputs(model, sizes).items()}
    found = [tokens | images for images in _images(config, names, sizes)]
    found += [tokens | states for states in _states(config, names, sizes)]
    if tokens:
        found += [tokens, {name: _ids(MANY, value.shape[1]) for name, value in tokens.items()}]
    return found


def caching(model: nn.Module, wanted: bool) -> dict[str, bool]:
    """Ask for a cache or for none, where the forward knows of one, or hands what it does not name to the base model."""
    names = inspect.signature(type(model).forward).parameters
    known = "use_cache" in names or any(one.kind is one.VAR_KEYWORD for one in names.values())
    return {"use_cache": wanted} if known else {}


def _ids(rows: int, length: int) -> Tensor:
    return torch.empty((rows, length), dtype=torch.long, device="meta")


def _images(whole: PreTrainedConfig, names: Mapping[str, object], sizes: Sizes) -> Iterator[Inputs]:
    """Images in each form that the signature and the config allow."""
    config = _vision_config(whole)
    if "pixel_values" not in names or config is None:
        return
    channels = _number(config, "num_channels", "in_channels", "in_chans") or 3
    patch = _number(config, "patch_size") or 1
    if "image_grid_thw" in names:
        kinds: Inputs = {"mm_token_type_ids": _ids(sizes.rows, sizes.length)} if "mm_token_type_ids" in names else {}
        yield _patches(config, channels, patch, sizes.rows) | kinds
        return
    size = _number(config, "image_size") or 4 * patch
    even = patch * max(4, size // patch // 4 * 4)  # patches are merged by 2 or 4 a side
    for side in dict.fromkeys((size, even)):
        if "image_sizes" in names:
            sides = torch.tensor([[side, side]] * sizes.rows)  # read as data, so a real tensor
            for images in ((sizes.rows,), (sizes.rows, TILES)):
                pixels = torch.empty((*images, channels, side, side), device="meta")
                yield {"pixel_values": pixels, "image_sizes": sides}
        for images in ((sizes.rows,), (sizes.rows, 2)):
            yield {"pixel_values": torch.empty((*images, channels, side, side), device="meta")}


def _states(config: PreTrainedConfig, names: Mapping[str, object], sizes: Sizes) -> Iterator[Inputs]:
    """What another model saw, as a decoder takes it that attends to that in some layers."""
    width = _number(config, "cross_attention_hidden_size", "hidden_size")
    if "cross_attention_states" in names and "pixel_values" not in names and width:
        yield {"cross_attention_states": torch.empty((sizes.rows, sizes.targets, width), device="meta")}


def _patches(config: PreTrainedConfig, channels: int, patch: int, images: int) -> Inputs:
    """Images as rows of flattened patches, with a grid of patches each: it is read as data, so it is a real tensor."""
    side = 2 * (_number(config, "spatial_merge_size") or 1)
    frames = _number(config, "temporal_patch_size") or 1
    rows, width = images * side * side, channels * frames * patch * patch
    return {
        "pixel_values": torch.empty((rows, width), device="meta"),
        "image_grid_thw": torch.tensor([[1, side, side]] * images),
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
