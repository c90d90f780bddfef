"""The benchmark of the transformer models of diffusers."""
