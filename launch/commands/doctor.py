"""`plan doctor`."""

from shardproof.launch.output.console import print_result


def doctor() -> None:
    """Say what is installed, which levels and engines can be used here, and what is missing."""
    from shardproof.launch.commands.installed import installed

    print_result(installed())
