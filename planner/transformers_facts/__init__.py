"""What the installed version of Transformers does, where versions differ.

Whatever can be read from the library is read: its registry of styles, its own function that deals layers to stages, what it
does to a table without an entry, how it applies a plan. `version.py` has the tables by version of what cannot be read. A test
runs every style of the installed version on two ranks, and compares it with `planner.ir.styles`.
"""
