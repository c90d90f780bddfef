"""Fields of a config, where one value holds for the whole model."""

from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError


def field_of(config: object, name: str) -> object:
    """The value; None where there is none, or where layers have values of their own, of which the config tells none."""
    try:
        return getattr(config, name, None)
    except AmbiguousGlobalPerLayerAttributeError:
        return None


def head_width(text: object) -> int:
    """What an engine takes for the width of a head; 0 for a config that does not say, or says it layer by layer."""
    try:
        heads, hidden, given = (
            getattr(text, name, None) for name in ("num_attention_heads", "hidden_size", "head_dim")
        )
    except AmbiguousGlobalPerLayerAttributeError:
        return 0
    if not given and isinstance(heads, int) and isinstance(hidden, int) and heads:
        given = hidden // heads
    return given if isinstance(given, int) else 0
