"""Which model types the benchmarks go over."""

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def causal_types() -> tuple[str, ...]:
    """Every causal-LM type of the installed Transformers."""
    return tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def other_types() -> tuple[str, ...]:
    """Every other type: vision, audio, tables, time series, encoders, encoder-decoders, dual towers."""
    return tuple(sorted(set(CONFIG_MAPPING) - set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)))
