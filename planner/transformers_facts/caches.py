"""The names by which Transformers' models take and return a cache."""

CACHE_OBJECTS = ("cache", "cache_params", "past_key_values")
"""Arguments and outputs that hold the library's `Cache`, the newest name first. Up to 5.23 attention and hybrids have the last,
and state-space models the second; from 5.24 on all have the first, and take the others as deprecated names of it.
"""

CACHE_NAMES = (*CACHE_OBJECTS, "state", "past_buckets_states")
"""With the names of what rwkv and reformer keep in lists of their own."""
