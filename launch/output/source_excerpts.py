"""Find the files of this machine for the relative paths in findings, and read source lines from them."""

import sys
from functools import cache
from pathlib import Path

from shardproof.planner.ir.findings import Source


@cache
def module_file(name: str) -> Path | None:
    """The file of a loaded module, by the relative path that findings have for it; None where no module has it."""
    from shardproof.planner.loading.source_lines import relative

    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return next((Path(file) for file in files if file and file.endswith(name) and relative(file) == name), None)


def excerpt(source: Source, *, around: int = 2) -> tuple[tuple[int, str], ...]:
    """The source line with `around` lines before and after it, numbered; empty where the file cannot be read."""
    file = module_file(source.file)
    try:
        lines = file.read_text(errors="replace").splitlines() if file is not None else []
    except OSError:
        return ()
    first = max(source.line - 1 - around, 0)
    return tuple((first + at + 1, line) for at, line in enumerate(lines[first : source.line + around]))
