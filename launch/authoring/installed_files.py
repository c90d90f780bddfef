"""Which source files a package installer put there, so that the next upgrade overwrites what is written into them."""

import csv
import sysconfig
from pathlib import Path


def is_installed(file: Path) -> bool:
    """Whether a package installer put this file there; not so the source of an editable install."""
    homes = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    inside = any(file.is_relative_to(Path(home).resolve()) for home in homes if home)
    return inside or not {"site-packages", "dist-packages"}.isdisjoint(file.parts) or _is_recorded(file)


def _is_recorded(file: Path) -> bool:
    """Whether a distribution beside the file's package lists it, as after `pip install --target`.

    Source: "Recording installed projects" of the Python Packaging User Guide, the RECORD file.
    """
    return any(
        file.relative_to(home).as_posix() in _recorded(record)
        for home in file.parents
        for record in home.glob("*.dist-info/RECORD")
    )


def _recorded(record: Path) -> set[str]:
    with record.open(newline="", encoding="utf-8", errors="replace") as lines:
        return {row[0] for row in csv.reader(lines) if row}
