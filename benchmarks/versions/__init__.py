"""Every causal-LM type on several versions of Transformers."""
