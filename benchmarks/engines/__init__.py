"""Families in real vLLM on CPU, beside what the proof in its dialect and `plan check` say of the same plans."""
