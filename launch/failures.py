"""An exception of a command as one sentence and an exit code."""

from shardproof.launch.result import MISUSE, UNDECIDED, MisuseError
from shardproof.planner.ir.errors import ArgumentError, LoadError, ShardproofError
from shardproof.planner.ir.plan import PlanError
from shardproof.planner.transformers_facts.version import VersionError

_LONGEST = 300


def told(error: Exception) -> tuple[str, int] | None:
    """The sentence and the code of an error that the caller, the model or the machine causes; None where it is our bug."""
    if isinstance(error, MisuseError | LoadError | PlanError | ArgumentError | VersionError):
        return str(error), MISUSE
    if isinstance(error, ShardproofError):  # a model that cannot be traced or made small: no fault of the arguments
        return str(error), UNDECIDED
    return None


def bug(error: Exception, advice: str = "") -> str:
    """The sentence about an exception that nobody expected."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return f"this is a bug in shardproof: {type(error).__name__}{f': {text}' if text else ''}.{advice}"


def interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is behind an error: Transformers makes an error of its own of one in its late imports."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
