"""The zoo benchmark: suggest, prove and run over the model types of the installed Transformers."""
