"""What a wrong reference raises, and the words its sentence is made of."""


class LoadError(ValueError):
    """A reference that names no model; the message is one sentence: what, where, what to do."""


def reason(error: BaseException) -> str:
    """An exception as one line: its innermost cause, without the frames around it."""
    if isinstance(error.__cause__, Exception):
        return reason(error.__cause__)
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
