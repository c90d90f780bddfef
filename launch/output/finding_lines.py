"""The file and line at which a finding is shown, relative to the repository: the entry in the file that holds the plan, else
the line of the model's code, else the model's file.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shardproof.launch.output.source_excerpts import module_file
from shardproof.planner.ir.findings import Finding, Source
from shardproof.verify.report.case_report import NOWHERE, Locate

if TYPE_CHECKING:
    from shardproof.planner.loading.load import LoadedModel

_INSTALLED = {"site-packages", "dist-packages"}


def locator(reference: str, loaded: "LoadedModel | None" = None, plan_file: Path | None = None) -> Locate:
    """Gives the place of each finding: a file inside the repository where there is one, else a path from its package on.

    Args:
        reference: the model as the command line names it.
        loaded: the same model; None where it cannot be loaded.
        plan_file: the plan file, if one was given.
    """
    folder = _folder(reference)
    if plan_file is not None:
        plans = [plan_file]
    else:
        plans = [*([folder / "config.json"] if folder else []), *(_files_of_classes(loaded) if loaded else ())]
    kind = loaded.model_class if loaded is not None else None

    def locate(finding: Finding) -> Source:
        entry = finding.place.entry
        of_entry = _of_entry(entry, plans, given=plan_file is not None) if entry is not None else ()
        found = [*of_entry, *_of_code(finding, folder), *_of_model(kind, folder)]
        inside = (source for file, source in found if _is_inside(file))
        return next(inside, next((source for _, source in found), NOWHERE))

    return locate


def repository(start: Path | None = None) -> Path:
    """The nearest folder from the current one up that git keeps; without one, the current folder."""
    here = (start or Path.cwd()).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def shown_path(file: Path) -> str:
    """A path from the repository on; of a file outside, from its package on."""
    from shardproof.planner.loading.source_lines import relative

    file = file.resolve()
    return file.relative_to(repository()).as_posix() if _is_inside(file) else relative(str(file))


def _is_inside(file: Path) -> bool:
    return file.resolve().is_relative_to(repository()) and not _INSTALLED & {*file.resolve().parts}


def _folder(reference: str) -> Path | None:
    """The folder that a reference by path names."""
    path = Path(reference.rpartition(":")[0] if ".py:" in reference else reference)
    if path.is_dir():
        return path
    return path.parent if path.is_file() else None


def _of_entry(entry: str, plans: Sequence[Path], *, given: bool) -> Iterator[tuple[Path, Source]]:
    """The line of an entry in the files that may hold the plan; a plan file that was given is shown without one too."""
    for file in plans:
        line = _line_of(file, entry)
        if line is not None or (given and file.is_file()):
            yield file, Source(shown_path(file), line or 1)


def _line_of(file: Path, entry: str) -> int | None:
    """The first line with the entry as a string; a key may be relative to the base model."""
    lines = _lines(file)
    parts = entry.split(".")
    keys = [".".join(parts[first:]) for first in range(min(len(parts), 3))]
    for key in keys:
        quoted = re.compile(rf"([\"']){re.escape(key)}\1")
        if (at := next((number for number, line in enumerate(lines, 1) if quoted.search(line)), None)) is not None:
            return at
    return None


def _lines(file: Path) -> tuple[str, ...]:
    try:
        return tuple(file.read_text(errors="replace").splitlines())
    except OSError:
        return ()


def _files_of_classes(loaded: "LoadedModel") -> Iterator[Path]:
    """The files of the config classes and of the model class, without Transformers' own base classes."""
    configs = [loaded.config, *(value for value in vars(loaded.config).values() if hasattr(value, "model_type"))]
    for kind in [*map(type, configs), loaded.model_class]:
        for each in kind.__mro__:
            if not each.__name__.startswith("PreTrained") and (file := _file_of(each)) is not None:
                yield file


def _file_of(kind: type) -> Path | None:
    try:
        return Path(inspect.getfile(kind))
    except (TypeError, OSError):
        return None


def _of_code(finding: Finding, folder: Path | None) -> Iterator[tuple[Path, Source]]:
    """The line of the model's code; of code that lies with a checkpoint, in the checkpoint and not in Transformers' copy."""
    source = finding.place.source
    if source is None:
        return
    line = max(source.line, 1)
    if folder is not None and (folder / source.file).is_file():
        yield folder / source.file, Source(shown_path(folder / source.file), line)
    elif (file := module_file(source.file)) is not None:
        yield file, Source(shown_path(file) if _is_inside(file) else source.file, line)
    else:
        yield Path(source.file), Source(source.file, line)


def _of_model(kind: type | None, folder: Path | None) -> Iterator[tuple[Path, Source]]:
    """The model's own file, at its class; else the config.json."""
    if kind is not None and (file := _file_of(kind)) is not None:
        own = folder / file.name if folder is not None and (folder / file.name).is_file() else file
        named = re.compile(rf"class {re.escape(kind.__name__)}\b")
        line = next((number for number, text in enumerate(_lines(own), 1) if named.match(text)), 1)
        yield own, Source(shown_path(own), line)
    if folder is not None and (folder / "config.json").is_file():
        yield folder / "config.json", Source(shown_path(folder / "config.json"), 1)
