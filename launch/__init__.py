"""Run it: commands, ranks, and the files that are written. The only package that prints, exits or starts a process."""
