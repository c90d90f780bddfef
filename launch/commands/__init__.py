"""One file for each command: its arguments, and the function from a request to an answer. `launch.cli` registers them.

Nothing is imported here, and no command's file imports torch before it runs: help must answer at once.
"""
