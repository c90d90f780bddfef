"""A report or a plan as text, JSON or Python. Pure functions of frozen data; no torch, no printing."""
