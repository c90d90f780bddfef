"""Smaller images and shorter audio for a twin, where its config fixes their size: a run on a full image takes minutes.

What counts the same thing shrinks together: the side of the image in every part, the patches of a side, all the patches, and the
tokens that they are pooled to. They are found by their values. Whether the result runs is what decides.
"""

from collections.abc import Iterator
from copy import deepcopy
from math import isqrt
from typing import Any

from transformers import PreTrainedConfig

from shardproof.planner.inputs.media import number, part_with
from shardproof.planner.loading.configs.config_defaults import parts_of

_FACTORS = (16, 8, 4, 2)
"""What sides are divided by, tried in this order."""
_PATCHES, _PIXELS = 4, 64
"""The least patches of a side, and the least pixels of one whose patches are not known."""
_POSITIONS = 32
"""Positions of an audio encoder."""
_COUNTED = ("image", "patch", "position", "token", "seq", "length", "num_q", "feature", "embedding_size", "queries")
"""Parts of the names of fields that may count pixels or patches."""
MOST = 2
"""Smaller sizes that are tried for one config."""


def smaller_media(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Copies of a config with smaller images, the smallest first, and shorter audio; none where they are small already."""
    side, patch = _side(config), _patch(config)
    unit, least = (patch, _PATCHES) if patch else (1, _PIXELS)
    factors = [factor for factor in _FACTORS if side % (factor * unit) == 0 and side // (factor * unit) >= least]
    for factor in factors[:MOST] if factors else (1,):
        made = deepcopy(config)
        changed = _shorter_audio(made)
        for part in parts_of(made) if factor > 1 else ():
            changed = _scaled(part, side=side, across=side // patch if patch else 0, factor=factor) or changed
        if changed:
            yield made


def _side(config: PreTrainedConfig) -> int:
    part = part_with(config, ("image_size",))
    return number(part, "image_size") if part is not None else 0


def _patch(config: PreTrainedConfig) -> int:
    part = part_with(config, ("patch_size",))
    return number(part, "patch_size") if part is not None else 0


def _scaled(part: PreTrainedConfig, *, side: int, across: int, factor: int) -> bool:
    """Divide what counts pixels or patches in one config; whether there was any."""
    found = False
    for name, value in list(vars(part).items()):
        if name.startswith("_") or not any(word in name for word in _COUNTED):
            continue
        new = _fewer(value, side=side, across=across, factor=factor)
        if new != value:
            setattr(part, name, new)
            found = True
    return found


def _fewer(value: Any, *, side: int, across: int, factor: int) -> Any:
    if isinstance(value, list | tuple) and value:
        return type(value)(_fewer(one, side=side, across=across, factor=factor) for one in value)
    if type(value) is not int or value < factor:
        return value
    if value in (side, across) or (not across and value > _PIXELS // 16 and side % value == 0):
        return value // factor if value % factor == 0 else value
    patches = across * across
    extra = value - patches if 0 < value - patches <= 2 else 0  # class tokens
    counted = value - extra
    if patches and counted > 1 and patches % counted == 0 and isqrt(patches // counted) ** 2 == patches // counted:
        small = counted // factor**2
        return small + extra if small * factor**2 == counted and small else value
    return value


def _shorter_audio(config: PreTrainedConfig) -> bool:
    """Fewer positions of audio encoders; whether there were many."""
    found = False
    for part in parts_of(config):
        for name in ("max_source_positions", "max_length"):
            value = vars(part).get(name)
            bins = number(part, "num_mel_bins", "input_feat_per_channel", "n_mels")
            if type(value) is int and value > 4 * _POSITIONS and bins:
                setattr(part, name, _POSITIONS * (4 if name == "max_length" else 1))
                found = True
    return found
