"""Benchmarks: `python -m tests.bench NAME`. Each prints a table and writes JSON."""
