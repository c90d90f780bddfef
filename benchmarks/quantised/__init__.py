"""Quantised checkpoints of every method that Transformers registers: what real ranks compute, beside what the proof says."""
