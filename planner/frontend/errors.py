"""What a wrong reference raises, and the words its sentence is made of."""

import difflib
from collections.abc import Iterable


class LoadError(ValueError):
    """A reference that names no model; the message is one sentence: what, where, what to do."""


def nearest(word: str, known: Iterable[str], *, count: int = 3) -> str:
    """A clause that names what `word` was probably meant to be; empty where nothing is near."""
    found = difflib.get_close_matches(word, [str(name) for name in known], n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def reason(error: BaseException) -> str:
    """An exception as one line: its innermost cause, without the frames around it."""
    if isinstance(error.__cause__, Exception):
        return reason(error.__cause__)
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
