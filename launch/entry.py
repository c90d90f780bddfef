"""Entry point of the console script: a Ctrl-C during the imports is one sentence and an exit code too."""

import sys


def main() -> None:
    """The command `plan`."""
    try:
        from shardproof.launch.cli import main as command
    except KeyboardInterrupt:
        print("plan: interrupted.", file=sys.stderr)
        sys.exit(130)
    command()
