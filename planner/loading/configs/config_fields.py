"""Fields of a config: those whose one value holds for all layers, and values that no model can have."""

import math
from collections.abc import Iterator

from transformers import PreTrainedConfig
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

from shardproof.planner.loading.configs.field_roles import role_of


def field_of(config: object, name: str) -> object:
    """The value of a field; None if there is none, or if each layer has its own value."""
    try:
        return getattr(config, name, None)
    except AmbiguousGlobalPerLayerAttributeError:
        return None


_COUNTS = frozenset({"layers", "vocabulary", "heads", "kv heads", "hidden", "intermediate"})
"""Roles of fields that count something, so that none is negative."""
_NEEDED = frozenset({"num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads"})
"""Fields of which a model that has them needs at least one."""


def impossible(config: PreTrainedConfig) -> Iterator[str]:
    """Each value that no model can have: a negative count, none of what is needed, a number that is none (NaN)."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        for name, value in vars(part).items() if isinstance(part, PreTrainedConfig) else ():
            if type(value) is int and ((role_of(name) in _COUNTS and value < 0) or (name in _NEEDED and value == 0)):
                yield f"{name} is {value}, and a model needs at least {int(name in _NEEDED)}"
            elif isinstance(value, float) and math.isnan(value):
                yield f"{name} is NaN, which is no number"


def head_width(text: object) -> int:
    """The head dim as an engine reads it; 0 if the config does not have one, or has one per layer."""
    try:
        heads, hidden, given = (
            getattr(text, name, None) for name in ("num_attention_heads", "hidden_size", "head_dim")
        )
    except AmbiguousGlobalPerLayerAttributeError:
        return 0
    if not given and isinstance(heads, int) and isinstance(hidden, int) and heads:
        given = hidden // heads
    return given if isinstance(given, int) else 0
