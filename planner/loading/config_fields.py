"""Fields of a config whose one value holds for all layers."""

from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError


def field_of(config: object, name: str) -> object:
    """The value of a field; None if there is none, or if each layer has its own value."""
    try:
        return getattr(config, name, None)
    except AmbiguousGlobalPerLayerAttributeError:
        return None


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
