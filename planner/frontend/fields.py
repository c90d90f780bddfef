"""A field of a config, where one value holds for the whole model."""

from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError


def field_of(config: object, name: str) -> object:
    """The value; None where there is none, or where layers have values of their own, of which the config tells none."""
    try:
        return getattr(config, name, None)
    except AmbiguousGlobalPerLayerAttributeError:
        return None
