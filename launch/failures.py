"""An exception of a command as one sentence and an exit code: the caller's fault, the model's, the machine's, or our bug."""

import errno
import traceback
from collections.abc import Iterator
from pathlib import Path

from shardproof.launch.result import MISUSE, UNDECIDED, MisuseError
from shardproof.planner.ir.errors import ArgumentError, LoadError, ShardproofError, reason
from shardproof.planner.ir.plan import PlanError
from shardproof.planner.transformers_facts.version import VersionError

_LONGEST = 300
_OURS = str(Path(__file__).resolve().parents[1])
_FULL = "the disk is full"
_CAUSES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file is larger than this process may write",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "there is no permission",
    errno.EPERM: "there is no permission",
    errno.EMFILE: "this process has too many open files",
    errno.ENFILE: "this machine has too many open files",
    errno.ENOMEM: "there is no memory left",
    errno.EIO: "the disk or device fails",
}


def failure_sentence(error: Exception) -> tuple[str, int] | None:
    """The sentence and the code of an error that the caller, the model or the machine causes; None where it is our bug."""
    if isinstance(error, MisuseError | LoadError | PlanError | ArgumentError | VersionError):
        return str(error), MISUSE
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "a path of the arguments is longer than file names can be.", MISUSE
    if isinstance(error, ShardproofError):  # a model that cannot be traced or made small: no fault of the arguments
        return str(error), UNDECIDED
    sentence = next(filter(None, map(_of_machine, _chain(error))), None)
    return None if sentence is None else (sentence, UNDECIDED)


def bug(error: Exception, advice: str = "") -> str:
    """The sentence about an exception that nobody expected."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return f"this is a bug in shardproof: {type(error).__name__}{f': {text}' if text else ''}.{advice}"


def interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is behind an error: Transformers makes an error of its own of one in its late imports."""
    return any(isinstance(each, KeyboardInterrupt) for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it, the innermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return reversed(found)


def _of_machine(error: BaseException) -> str | None:
    """What is wrong with the machine or the environment; None where an error says nothing of them."""
    if isinstance(error, MemoryError):
        return "the memory of this machine is used up; give a smaller model, or a machine with more memory."
    if "No space left on device" in str(error):  # also of libraries that have errors of their own for it
        return f"{_FULL}{_file(error)}; make room, or set TMPDIR to a folder that has some."
    if isinstance(error, OSError) and error.errno in _CAUSES:
        return f"{_CAUSES[error.errno]}{_file(error)}; this command cannot go on without it."
    if "No usable temporary directory" in str(error):
        return "there is no folder for temporary files that can be written; set TMPDIR to one."
    return _of_import(error)


def _file(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" ({Path(name).name})" if isinstance(name, str) and name else ""


def _of_import(error: BaseException) -> str | None:
    """A package that is missing, or that raises while it is imported, by the last module whose own code ran."""
    advice = "`plan doctor` says what has to be installed"
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [number for number, frame in enumerate(frames) if Path(frame.filename).resolve().is_relative_to(_OURS)]
    after = frames[ours[-1] + 1 :] if ours else frames
    if missing and missing != "shardproof":
        return f"the package {missing} is missing in this environment; {advice}."
    loading = [frame.filename for frame in after if frame.name == "<module>" and Path(frame.filename).is_file()]
    if not loading:
        return None
    why = reason(error)[:_LONGEST]
    return f"{_package(Path(loading[-1]))} is broken in this environment, for importing it raises {why}; {advice}."


def _package(file: Path) -> str:
    """The package that a file belongs to."""
    found = file
    while (found.parent / "__init__.py").is_file():
        found = found.parent
    return found.stem
