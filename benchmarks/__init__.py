"""Benchmarks: `python -m benchmarks NAME`. Each prints a table and writes JSON."""
