"""Images, video and audio as inputs of a model: tensors on the meta device, in every form that the forward may expect.

The signature says which there are, by the argument names of Transformers (`pixel_values`, `input_features`, ...); the
config says their sizes. Tensors whose values the code reads (a grid, a mask) are real. If the config lacks a size, or a
name has several forms, each form is yielded, the fullest first; the caller tries them.
"""

from collections.abc import Iterator, Mapping
from itertools import product

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from shardproof.planner.loading.configs.config_fields import field_of

TILES = 3
"""Tiles of an image that is given as a whole and as the smallest grid, which has two tiles."""
SIDE = 224
"""Pixels of an image's side if the config has no size: the usual training size of Transformers' image models."""
FRAMES = 256
"""Frames of an audio spectrogram if the config has no number."""
SAMPLES = 6400
"""Samples of an audio waveform: 20 windows with the usual stride of 320."""


def media(config: PreTrainedConfig, names: Mapping[str, object], rows: int) -> Iterator[dict[str, Tensor]]:
    """Inputs other than tokens for arguments with these names, for a batch of `rows`; first all kinds together."""
    kinds = [list(kind(config, names, rows)) for kind in (_images, _videos, _audio)]
    present = [forms for forms in kinds if forms]
    if len(present) > 1:
        for together in product(*present):
            yield {name: value for form in together for name, value in form.items()}
    for forms in present:
        yield from forms


def number(config: PreTrainedConfig, *names: str) -> int:
    """The value of the first of these fields that the config has; the height of a pair (height, width); 0 if there is none."""
    for name in names:
        value = field_of(config, name)
        value = value[0] if isinstance(value, tuple | list) and value else value
        if type(value) is int:
            return value
    return 0


def _images(whole: PreTrainedConfig, names: Mapping[str, object], rows: int) -> Iterator[dict[str, Tensor]]:
    """Images, as pixels or as flattened patches with a grid."""
    config = part_with(whole, ("patch_size",), ("hidden_size", "embed_dim"))
    if "grid_thw" in names:
        yield from _gridded(
            config or whole, "hidden_states" if "hidden_states" in names else "pixel_values", "grid_thw", rows
        )
    if "pixel_values" not in names:
        return
    config = config or part_with(whole, ("num_channels", "in_channels", "in_chans")) or whole
    if "image_grid_thw" in names:
        yield from _gridded(config, "pixel_values", "image_grid_thw", rows)
        return
    yield from _patches(config, names, rows)
    yield from _pixels(config, names, rows)


def _pixels(config: PreTrainedConfig, names: Mapping[str, object], rows: int) -> Iterator[dict[str, Tensor]]:
    channels, patch = _channels(config), number(config, "patch_size")
    size = number(config, "image_size") or 4 * patch or SIDE
    even = patch * max(4, size // patch // 4 * 4) if patch else size  # patches are merged by 2 or 4 a side
    if rectangle := _rectangle(config):
        yield {"pixel_values": _floats(rows, channels, *rectangle)}
    for side in dict.fromkeys((size, even)):
        if "image_sizes" in names:
            sides = torch.tensor([[side, side]] * rows)
            for images in ((rows,), (rows, TILES)):
                yield {"pixel_values": _floats(*images, channels, side, side), "image_sizes": sides}
        for images in ((rows,), (rows, 2)):
            yield {"pixel_values": _floats(*images, channels, side, side)}
        if frames := _frames(config):
            yield {"pixel_values": _floats(rows, frames, channels, side, side)}


_ACROSS = 4
"""Patches of a side of an image that is given as patches."""


def _patches(config: PreTrainedConfig, names: Mapping[str, object], rows: int) -> Iterator[dict[str, Tensor]]:
    """Images as rows of flattened patches, with the number of them each way, their places or a mask; or in one strip."""
    patch, count = number(config, "patch_size") or 1, _ACROSS * _ACROSS
    width, sides = _channels(config) * patch * patch, torch.tensor([[_ACROSS, _ACROSS]] * rows)
    whole = {name: torch.ones((rows, count), dtype=torch.long) for name in ("pixel_attention_mask",) if name in names}
    if "spatial_shapes" in names:
        yield {"pixel_values": _floats(rows, count, width), "spatial_shapes": sides, **whole}
    if "pixel_position_ids" in names:
        steps = torch.arange(_ACROSS)
        places = torch.cartesian_prod(steps, steps).expand(rows, count, 2)
        yield {"pixel_values": _floats(rows, count, width), "pixel_position_ids": places.contiguous()}
    if "target_sizes" in names:
        yield {"pixel_values": _floats(1, _channels(config), patch, rows * count * patch), "target_sizes": sides}


def _rectangle(config: PreTrainedConfig) -> tuple[int, int] | None:
    """Height and width of an image that is not square."""
    match field_of(config, "image_size"):
        case [int(height), int(width)] if height != width:
            return height, width
        case _:
            return None


def _gridded(config: PreTrainedConfig, pixels: str, grid: str, images: int) -> Iterator[dict[str, Tensor]]:
    """Images as flattened patches, each with its grid of patches."""
    side = 2 * (number(config, "spatial_merge_size") or 1)
    deep, patch = number(config, "temporal_patch_size") or 1, number(config, "patch_size") or 1
    count, width = images * side * side, _channels(config) * deep * patch * patch
    yield {pixels: _floats(count, width), grid: torch.tensor([[1, side, side]] * images)}


def _videos(whole: PreTrainedConfig, names: Mapping[str, object], rows: int) -> Iterator[dict[str, Tensor]]:
    """Video, for a model that takes no images: several images per row."""
    if "pixel_values_videos" not in names or "pixel_values" in names:
        return
    config = part_with(whole, ("patch_size", "num_frames", "frames_per_clip")) or whole
    side = number(config, "image_size", "crop_size") or SIDE
    yield {"pixel_values_videos": _floats(rows, _frames(config) or 4, _channels(config), side, side)}


def _audio(whole: PreTrainedConfig, names: Mapping[str, object], rows: int) -> Iterator[dict[str, Tensor]]:
    """Audio, as spectrograms (bins by frames, in either order) or as waveforms."""
    config = part_with(whole, BINS) or whole
    spectra = [name for name in ("input_features", "audio_mel") if name in names]
    bins = number(config, *BINS)
    if spectra and bins:
        for frames, bins_first in product(_durations(config), (True, False)):
            shape = (bins, frames) if bins_first else (frames, bins)
            yield {spectra[0]: _floats(rows, *shape), **_heard(names, rows, frames)}
    if "input_values" in names:
        if bins:
            for frames in _durations(config):
                yield {"input_values": _floats(rows, frames, bins)}
        yield {"input_values": _floats(rows, SAMPLES)}
        yield {"input_values": _floats(rows, 1, SAMPLES)}


BINS = (
    "num_mel_bins",
    "input_feat_per_channel",
    "n_mels",
    "feature_projection_input_dim",
    "input_feat_size",
    "mel_bins",
)
"""The names of config fields of transformers 5.23.0 for the number of bins of a spectrogram."""
_MASKS = ("input_features_mask", "feature_attention_mask", "audio_mel_mask")


def _heard(names: Mapping[str, object], rows: int, frames: int) -> dict[str, Tensor]:
    """A mask of ones over the frames, if the forward takes one."""
    return {name: torch.ones((rows, frames), dtype=torch.long) for name in _MASKS if name in names}


def _durations(config: PreTrainedConfig) -> tuple[int, ...]:
    """Numbers of frames to try: some models take one length only, twice the number of positions after the first stride."""
    positions = number(config, "max_source_positions")
    return tuple(dict.fromkeys(filter(None, (2 * positions, positions, number(config, "max_length"), FRAMES))))


def part_with(config: PreTrainedConfig, fields: tuple[str, ...], more: tuple[str, ...] = ()) -> PreTrainedConfig | None:
    """The config, or the nested part of it, that has one of `fields` and, if given, one of `more`."""
    if number(config, *fields) and (not more or number(config, *more)):
        return config
    parts = [part for part in vars(config).values() if isinstance(part, PreTrainedConfig)]
    return next((found for part in parts if (found := part_with(part, fields, more)) is not None), None)


def _channels(config: PreTrainedConfig) -> int:
    return number(config, "num_channels", "in_channels", "in_chans") or 3


def _frames(config: PreTrainedConfig) -> int:
    return number(config, "num_frames", "frames_per_clip")


def _floats(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")
