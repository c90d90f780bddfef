"""Smaller images and shorter audio for a twin, where its config fixes their size: a run on a full image takes minutes.

What counts the same thing shrinks together: the side of the image in every part, the patches of a side, all the patches, and the
tokens that they are pooled to. They are found by their values. Whether the result runs is what decides.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from math import isqrt
from typing import Any

from transformers import PreTrainedConfig

from shardproof.planner.inputs.media import BINS, number, part_with
from shardproof.planner.loading.configs.config_defaults import parts_of

_PATCHES, _PIXELS = 4, 64
"""The least patches of a side, and the least pixels of one whose patches are not known."""
_POSITIONS = 32
"""Positions of an audio encoder."""
_COUNTED = ("image", "patch", "position", "token", "seq", "length", "num_q", "feature", "embedding_size", "queries")
"""Parts of the names of fields that may count pixels or patches."""
MOST = 2
"""Smaller sizes that are tried for one config."""


@dataclass(frozen=True, slots=True)
class _Shrink:
    """The side of an image in pixels and in patches (0: not known), before and after."""

    side: int
    across: int
    new_side: int
    new_across: int


def smaller_media(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Copies of a config with smaller images, the smallest first, and shorter audio; none where they are small already."""
    side, patch = _side(config), _patch(config)
    shrinks: list[_Shrink | None] = [*islice(_shrinks(side, patch), MOST)]
    for shrink in shrinks or [None]:
        made = deepcopy(config)
        changed = _shorter_audio(made)
        for part in parts_of(made):
            changed = (shrink is not None and _scaled(part, shrink)) or changed
        if changed:
            yield made


def _shrinks(side: int, patch: int) -> Iterator[_Shrink]:
    """Smaller sides: in the ratio of whole numbers of patches, as far as there is one; else a few patches."""
    across = side // patch if patch else 0
    counts = [count for count in range(_PATCHES, across // 2 + 1) if across % count == 0]
    for count in counts or ([2 * _PATCHES] if across > 4 * _PATCHES else []):
        yield _Shrink(side, across, side // (across // count) if side % patch == 0 and counts else count * patch, count)
    if not across:
        for factor in (16, 8, 4, 2):
            if side % factor == 0 and side // factor >= _PIXELS:
                yield _Shrink(side, 0, side // factor, 0)


def _side(config: PreTrainedConfig) -> int:
    part = part_with(config, ("image_size",))
    return number(part, "image_size") if part is not None else 0


def _patch(config: PreTrainedConfig) -> int:
    part = part_with(config, ("patch_size",))
    return number(part, "patch_size") if part is not None else 0


def _scaled(part: PreTrainedConfig, shrink: _Shrink) -> bool:
    """Make what counts pixels or patches smaller in one config; whether there was any."""
    found = False
    for name, value in list(vars(part).items()):
        if name.startswith("_") or not any(word in name for word in _COUNTED):
            continue
        new = _fewer(value, shrink)
        if new != value:
            setattr(part, name, new)
            found = True
    return found


def _fewer(value: Any, shrink: _Shrink) -> Any:
    if isinstance(value, list | tuple) and value:
        if shrink.side in value:  # height and width, which may differ
            return type(value)(_in_ratio(one, shrink) for one in value)
        return type(value)(_fewer(one, shrink) for one in value)
    if type(value) is not int or value <= 1:
        return value
    if value in (shrink.side, shrink.across):
        return shrink.new_side if value == shrink.side else shrink.new_across
    if not shrink.across:  # a map of features, smaller by a stride
        fits = value > shrink.side // shrink.new_side and shrink.side % value == 0
        return value * shrink.new_side // shrink.side if fits else value
    patches = shrink.across**2
    for extra in (0, 1, 2):  # class tokens
        each = isqrt(patches // max(value - extra, 1))
        if value > extra + 1 and each**2 * (value - extra) == patches and shrink.new_across % each == 0:
            return (shrink.new_across // each) ** 2 + extra
    return value


def _in_ratio(value: Any, shrink: _Shrink) -> Any:
    fits = type(value) is int and value * shrink.new_side % shrink.side == 0
    return value * shrink.new_side // shrink.side if fits else value


def _shorter_audio(config: PreTrainedConfig) -> bool:
    """Fewer positions of audio encoders; whether there were many."""
    found = False
    for part in parts_of(config):
        for name in ("max_source_positions", "max_length"):
            value = vars(part).get(name)
            bins = number(part, *BINS)
            if type(value) is int and value > 4 * _POSITIONS and bins:
                setattr(part, name, _POSITIONS * (4 if name == "max_length" else 1))
                found = True
    return found
