"""The errors that a caller may get: one base class, and a message of one sentence that says what is wrong, where, and what
to do.
"""


class ShardproofError(Exception):
    """The base of every error that the caller, the plan or the model causes. Any other exception is a bug of shardproof."""


class ArgumentError(ShardproofError, ValueError):
    """An argument that is invalid by itself or together with others, such as a degree below 1."""


class LoadError(ShardproofError, ValueError):
    """A reference that names no model."""


def innermost(error: BaseException) -> BaseException:
    """The exception that caused all others of a chain."""
    return innermost(error.__cause__) if error.__cause__ is not None else error


def reason(error: BaseException) -> str:
    """The innermost cause of an exception as one line, `TYPE: message`."""
    if isinstance(error.__cause__, Exception):
        return reason(error.__cause__)
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
