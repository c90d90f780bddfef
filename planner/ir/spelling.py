"""What a misspelt name was probably meant to be."""

import difflib
from collections.abc import Iterable, Sequence


def nearest(word: str, known: Iterable[str], *, count: int = 3) -> str:
    """A sentence, with a space before it, that names the nearest of `known`; empty where nothing is near."""
    found = difflib.get_close_matches(word, [str(name) for name in known], n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def listing(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
