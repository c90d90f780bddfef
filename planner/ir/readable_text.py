"""How names, numbers of bytes and text of unknown origin are written for a reader."""

import difflib
import re
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


_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Characters that steer a terminal, change the order of text, cannot be seen, or cannot be encoded. Lines and tabs stay."""


def visible(text: str) -> str:
    """Text for a reader: characters that a terminal obeys, or that nobody sees, as `\\uXXXX`, which JSON and Python read back."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """`visible` text in one line."""
    return " ".join(visible(text).split())


def python_string(text: str) -> str:
    """A Python literal of any text, in double quotes as formatters write it."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{visible(plain)}"'


_UNITS = ("B", "KiB", "MiB", "GiB")


def format_bytes(count: float) -> str:
    """Bytes in the largest binary unit in which they are at least one, up to TiB: `1.5 GiB`."""
    for unit in _UNITS:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
