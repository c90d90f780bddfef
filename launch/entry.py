"""Where the console script begins: nothing is imported before a Ctrl-C is one sentence and an exit code."""

import sys


def main() -> None:
    """The command `plan`."""
    try:
        from shardproof.launch.cli import main as command
    except KeyboardInterrupt:
        print("plan: interrupted.", file=sys.stderr)
        sys.exit(130)
    command()
