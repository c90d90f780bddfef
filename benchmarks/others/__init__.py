"""The benchmark of the other types: all that Transformers has beside causal language models."""
