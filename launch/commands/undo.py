"""`plan undo FILE ...`."""

from pathlib import Path
from typing import Annotated

import typer

from launch.console import print_result
from launch.rewrite import diff
from launch.rewrite import undo as restore


def undo(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files that `plan suggest --write` changed.")],
) -> None:
    """Take back the last plan that was written into these files, and print the diff."""
    before = restore(files)
    print_result(diff(before, {file: file.read_bytes() for file in before}).rstrip("\n"))
