"""Rewrite source files atomically, all or none, with an undo."""

import difflib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from shardproof.launch.result import MisuseError


def diff(before: Mapping[Path, bytes], after: Mapping[Path, bytes]) -> str:
    """A unified diff that `patch -p1` and `git apply` take, paths relative to the current folder where they lie in it."""
    parts = []
    for file in before:
        old, new = (text[file].decode(errors="replace").splitlines(keepends=True) for text in (before, after))
        name = display_path(file)
        lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
        parts.append(
            "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
        )
    return "".join(parts)


def display_path(file: Path) -> str:
    """The path of a file relative to the current folder, or only its name: no message has an absolute path."""
    here = Path.cwd()
    return file.relative_to(here).as_posix() if file.is_relative_to(here) else file.name


def rewrite(before: Mapping[Path, bytes], after: Mapping[Path, bytes]) -> None:
    """Replace the content of all of these files or of none; `undo` restores it.

    Raises:
        MisuseError: a file has changed since it was read, or cannot be written.
    """
    before, after = ({file.resolve(): content for file, content in files.items()} for files in (before, after))
    _unchanged(before)
    for file in before:
        if not file.stat().st_mode & 0o222:  # a rename would pass over it
            raise MisuseError(f"{display_path(file)} is read-only; nothing was changed.")
    for file, content in before.items():
        _remember(file, content, after[file])
    try:
        _replace(before, after)
    except MisuseError:
        for file in before:
            _forget(file)
        raise


def undo(files: Sequence[Path]) -> Mapping[Path, bytes]:
    """Restore each file to what it was before its last rewrite, and return the contents that were replaced.

    Raises:
        MisuseError: a file has changed since the rewrite, or was never rewritten.
    """
    past = {file.resolve(): _last(file.resolve()) for file in files}
    now = {file: _read(file) for file in past}
    for file, (_, written) in past.items():
        if _digest(now[file]) != written:
            kept = _record(file)
            raise MisuseError(
                f"{display_path(file)}: it was changed after it was written, so undoing would lose that; "
                f"what it held before is kept under {_state_name(kept)}."
            )
    _replace(now, {file: content for file, (content, _) in past.items()})
    for file in past:
        _forget(file)
    return now


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise MisuseError(f"{display_path(file)} cannot be read ({type(error).__name__}).") from error


def _unchanged(before: Mapping[Path, bytes]) -> None:
    for file, content in before.items():
        if _read(file) != content:
            raise MisuseError(f"{display_path(file)} changed since it was read; run the command again.")


def _replace(before: Mapping[Path, bytes], after: Mapping[Path, bytes]) -> None:
    """All new files are complete on disk before the first takes its place; a failure puts back what had been replaced."""
    ready: dict[Path, Path] = {}
    done: list[Path] = []
    try:
        for file, content in after.items():
            ready[file] = _beside(file, content)
        for file, new in ready.items():
            new.replace(file)
            done.append(file)
    except OSError as error:
        for other in done:
            _beside(other, before[other]).replace(other)
        raise MisuseError(
            f"{display_path(file)} cannot be written ({type(error).__name__}); nothing was changed."
        ) from error
    finally:
        for new in ready.values():
            new.unlink(missing_ok=True)


def _beside(file: Path, content: bytes) -> Path:
    """A complete file with this content and the other's permissions, in the same folder, so that a rename is atomic."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(file.stat().st_mode & 0o7777)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


# What was replaced is kept outside the user's own folders: one stack of contents for each file.


def _state() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "shardproof" / "undo"


def _state_name(record: Path) -> str:
    return f"$XDG_STATE_HOME/shardproof/undo/{record.name} (by default in ~/.local/state)"


def _record(file: Path) -> Path:
    return _state() / f"{file.stem}-{_digest(str(file).encode())[:16]}.json"


def _remember(file: Path, old: bytes, new: bytes) -> None:
    record = _record(file)
    stack = [*_stack(file), {"before": old.decode("latin-1"), "after": _digest(new)}]
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()
        _beside(record, json.dumps(stack).encode()).replace(record)
    except OSError as error:
        raise MisuseError(
            f"the old content cannot be saved for `plan undo` ({type(error).__name__}), so nothing was written; "
            "set XDG_STATE_HOME."
        ) from error


def _last(file: Path) -> tuple[bytes, str]:
    stack = _stack(file)
    if not stack:
        raise MisuseError(f"{display_path(file)}: there is nothing to undo; no plan was written into this file.")
    return stack[-1]["before"].encode("latin-1"), stack[-1]["after"]


def _forget(file: Path) -> None:
    record, stack = _record(file), _stack(file)[:-1]
    if stack:
        _beside(record, json.dumps(stack).encode()).replace(record)
    else:
        record.unlink(missing_ok=True)


def _stack(file: Path) -> list[dict[str, str]]:
    """Contents as latin-1 text, which holds any bytes."""
    try:
        found = json.loads(_record(file).read_text())
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
