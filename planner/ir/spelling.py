"""Suggestions for misspelt names, and lists of names in a sentence."""

import difflib
from collections.abc import Iterable, Sequence


def nearest_names(word: str, known: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """At most `count` known names similar to `word`, the most similar first; `cutoff` is the least similarity, 0 to 1."""
    return difflib.get_close_matches(word, [str(name) for name in known], n=count, cutoff=cutoff)


def nearest(word: str, known: Iterable[str], *, count: int = 3) -> str:
    """` Did you mean a or b?`, with a space before it; empty if no known name is similar to `word`."""
    found = nearest_names(word, known, count=count)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def listing(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
