"""From the source lines that findings name (relative, nothing of the machine) back to files that are here."""

import sys
from functools import cache
from pathlib import Path

from shardproof.planner.ir.findings import Source


@cache
def file_of(name: str) -> Path | None:
    """The file of a loaded module that a finding calls so."""
    from shardproof.planner.loading.source_lines import relative

    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return next((Path(file) for file in files if file and file.endswith(name) and relative(file) == name), None)


def located(name: str) -> str:
    """The path relative to the current folder where the file lies in it, other than in an environment's packages; else as the
    finding has it.
    """
    file, here = file_of(name), Path.cwd()
    mine = file is not None and file.is_relative_to(here) and not {"site-packages", "dist-packages"} & {*file.parts}
    return file.relative_to(here).as_posix() if file is not None and mine else name


def excerpt(source: Source, *, around: int = 2) -> tuple[tuple[int, str], ...]:
    """The line and its neighbours, numbered; nothing where the file cannot be read."""
    file = file_of(source.file)
    try:
        lines = file.read_text(errors="replace").splitlines() if file is not None else []
    except OSError:
        return ()
    first = max(source.line - 1 - around, 0)
    return tuple((first + at + 1, line) for at, line in enumerate(lines[first : source.line + around]))
