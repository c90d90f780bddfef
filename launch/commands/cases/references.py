"""Which models a list of references means: globs are expanded, and with `--changed` only models whose files changed are kept."""

import glob
import os
import subprocess
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from shardproof.launch.authoring.installed_files import is_installed
from shardproof.launch.result import MisuseError

_WAIT = 30


def expanded(references: Iterable[str]) -> tuple[str, ...]:
    """The references in order, each once; a glob means the checkpoint folders, config files and GGUF files that it fits.

    Raises:
        MisuseError: a glob fits none.
    """
    found: dict[str, None] = {}
    for reference in references:
        if not _is_glob(reference):
            found[reference] = None
            continue
        models = [path for path in sorted(glob.glob(reference, recursive=True)) if _is_model(Path(path))]
        if not models:
            raise MisuseError(f"{reference} fits no folder with a config.json, no config file and no GGUF file.")
        found |= dict.fromkeys(models)
    return tuple(found)


def _is_glob(reference: str) -> bool:
    return glob.has_magic(reference) and not Path(reference).exists()


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() or (path.is_file() and path.suffix in (".json", ".gguf"))


def changed_files(given: Sequence[str]) -> frozenset[Path]:
    """The files given, or those that git says are changed or new since the last commit.

    git runs nothing that the repository's own configuration names: no file-system monitor, no filter for differences.

    Raises:
        MisuseError: there is no git, or no repository.
    """
    if given:
        return frozenset(Path(name).resolve() for name in given)
    root = Path(_git("rev-parse", "--show-toplevel").removesuffix("\n"))
    told = _git("diff", "--name-only", "-z", "--no-ext-diff", "--no-textconv", "HEAD", "--")
    new = _git("-C", str(root), "ls-files", "--others", "--exclude-standard", "-z")
    return frozenset((root / name).resolve() for name in (told + new).split("\0") if name)


def _git(*arguments: str) -> str:
    command = ["git", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_WAIT, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", b"") or b""
        why = said.decode(errors="replace").strip().splitlines()[-1:] or [type(error).__name__]
        raise MisuseError(f"--changed asks git, which failed ({why[0]}); give the changed files instead.") from error
    return os.fsdecode(done.stdout)


def is_changed(reference: str, plan_file: Path | None, changed: frozenset[Path]) -> bool:
    """Whether a model has to be looked at again: one of its files changed, its plan file, or code that it may import."""
    if plan_file is not None and plan_file.resolve() in changed:
        return True
    folder = _folder_of(reference)
    return folder is not None and any(file.is_relative_to(folder) for file in changed)


def _folder_of(reference: str) -> Path | None:
    """The folder whose files a model is made of; None of a model type, a Hub id, and a class of an installed package."""
    head, colon, _ = reference.rpartition(":")
    path = Path(head if colon else reference).resolve()
    if path.is_dir() and ("/" in reference or (path / "config.json").is_file()):
        return path
    if path.is_file():
        return path.parent
    return _folder_of_package(head.partition(".")[0]) if colon and not head.endswith(".py") else None


def _folder_of_package(name: str) -> Path | None:
    """The folder of a package, found without running anything of it; None of an installed one."""
    here = Path(name).resolve()
    if here.is_dir() or here.with_suffix(".py").is_file():
        return here if here.is_dir() else here.parent
    found = find_spec(name) if name.isidentifier() else None
    file = Path(found.origin).resolve() if found is not None and found.origin else None
    return None if file is None or is_installed(file) else file.parent
