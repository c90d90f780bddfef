"""The errors that a caller may meet: one base, and a message of one sentence that says what, where, and what to do."""


class ShardproofError(Exception):
    """The base of every error that is the caller's, the plan's or the model's. Anything else that is raised is a bug of ours."""


class ArgumentError(ShardproofError, ValueError):
    """An argument that makes no sense by itself or beside the others, such as a degree below 1."""


class LoadError(ShardproofError, ValueError):
    """A reference that names no model."""


def reason(error: BaseException) -> str:
    """An exception as one line: its innermost cause, without the frames around it."""
    if isinstance(error.__cause__, Exception):
        return reason(error.__cause__)
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
