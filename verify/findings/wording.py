"""Phrases that several findings share."""

from collections.abc import Sequence


def did_you_mean(near: Sequence[str]) -> str:
    """The end of a sentence on an unknown name: the nearest known one, where there is any."""
    return f'; did you mean "{near[0]}"?' if near else "."
