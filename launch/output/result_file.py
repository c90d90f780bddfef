"""A result in a file, whole or not at all."""

import os
import tempfile
from pathlib import Path

from shardproof.launch.result import MisuseError, UndecidedError
from shardproof.planner.ir.readable_text import visible


def write_result(path: Path, text: str) -> None:
    """Write the result into a file, whole or not at all; a device or a pipe is written to as it is.

    Raises:
        UndecidedError: the result cannot be written, so the caller does not get it.
    """
    content = (visible(text) + "\n").encode()
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        target = path.resolve()
        handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            mask = os.umask(0)
            os.umask(mask)
            Path(beside).chmod(target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~mask)
            Path(beside).replace(target)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UndecidedError(f"{path} could not be written: {error.strerror or type(error).__name__}.") from error


def writable(path: Path | None) -> Path | None:
    """A file that is to be written once the work is done, checked before it begins.

    Raises:
        MisuseError: its folder is not there, or it is a folder.
    """
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise MisuseError(f"{path} cannot be written: give a file in a folder that is there.")
    return path
