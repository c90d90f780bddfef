"""Read JSON that anybody wrote: bounded, each key once, and a wrong file is one sentence. No torch."""

import json
import stat
from pathlib import Path

MOST = 64 * 2**20
"""Bytes of the largest file that is read; configs and plans are a thousandth of that."""


class JsonFileError(ValueError):
    """A file that holds no JSON which can be used; the message is what can be said of the file."""


def read_json(path: Path) -> object:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        JsonFileError: it is no regular file, too large, not valid JSON, nested too deep, or says a key twice.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise JsonFileError("is no regular file")
        if found.st_size > MOST:
            raise JsonFileError(f"has more than {MOST // 2**20} MiB")
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise JsonFileError("is not text in UTF-8") from error
    except OSError as error:
        raise JsonFileError(f"cannot be read ({type(error).__name__})") from error


def parse_json(text: str) -> object:
    """The value in JSON text.

    Raises:
        JsonFileError: as `read_json`.
    """
    try:
        value: object = json.loads(text, object_pairs_hook=_each_once)
    except json.JSONDecodeError as error:
        raise JsonFileError(f"is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise JsonFileError("is nested too deep") from error
    except JsonFileError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise JsonFileError(f"holds a number that cannot be read ({str(error).partition(';')[0]})") from error
    return value


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonFileError(f"says {twice!r} twice")
    return found
