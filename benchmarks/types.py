"""Which model types the benchmarks go over."""

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def causal_types() -> tuple[str, ...]:
    """Every causal-LM type of the installed Transformers."""
    return tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
