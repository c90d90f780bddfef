"""`plan undo FILE ...`."""

from pathlib import Path
from typing import Annotated

import typer

from shardproof.launch.authoring.source_files import diff
from shardproof.launch.authoring.source_files import undo as restore
from shardproof.launch.output.console import print_result


def undo(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files that `--write` changed.")],
) -> None:
    """Take back what `plan suggest --write` or `plan port --write` wrote last into these files, and print the diff."""
    before = restore(files)
    print_result(diff(before, {file: file.read_bytes() for file in before}).rstrip("\n"))
