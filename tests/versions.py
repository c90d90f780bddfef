"""Facts of Transformers' versions that tests ask for: what the installed one lacks."""

from collections.abc import Mapping

import pytest
from transformers import CONFIG_MAPPING

from shardproof.planner.transformers_facts.version import is_least, minor_text, style_exists

UNEVEN = is_least((5, 21))
"""Whether the parts of a linear layer may differ in size."""
LOOKS_UP_PRODUCTS = is_least((5, 21))
"""Whether the styles of embeddings also do something known on modules that are none."""
SPLITS_TABLES = is_least((5, 21))
"""Whether a table called `embed_tokens` is split without an entry."""


def wants(*styles: str) -> pytest.MarkDecorator:
    """Skips a test of styles that the installed version lacks."""
    lacking = [style for style in styles if not style_exists(style)]
    return pytest.mark.skipif(bool(lacking), reason=f"Transformers {minor_text()} has no {', '.join(lacking)}")


def type_exists(name: str) -> bool:
    """Whether the installed version has a model type."""
    return name in CONFIG_MAPPING


def wants_type(name: str) -> pytest.MarkDecorator:
    """Skips a test of a model type that the installed version lacks."""
    return pytest.mark.skipif(not type_exists(name), reason=f"Transformers {minor_text()} has no {name}")


def since(minor: tuple[int, int], what: str) -> pytest.MarkDecorator:
    """Skips a test of something that came with a later version."""
    return pytest.mark.skipif(not is_least(minor), reason=f"Transformers {minor_text()}: {what}")


def serves(styles: Mapping[str, str]) -> bool:
    """Whether the installed version has all of these styles, and those of embeddings for modules that are none."""
    looks_up = any(style.startswith("embedding_") for style in styles.values())
    return all(map(style_exists, styles.values())) and (LOOKS_UP_PRODUCTS or not looks_up)
