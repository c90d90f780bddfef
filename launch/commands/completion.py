"""Shell completion: the candidates for an incomplete word. Neither torch nor Transformers is loaded, since the shell waits for
it.
"""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from shardproof.planner.ir.readable_text import visible
from shardproof.verify.clients.registry import DIALECTS, clients
from shardproof.verify.findings.catalogue import rules


def models(incomplete: str) -> list[str]:
    """Model types of the installed Transformers, and the files and folders that begin so."""
    found = find_spec("transformers")
    folders = (Path(place) / "models" for place in (found.submodule_search_locations if found else None) or ())
    types = (
        each.name
        for folder in folders
        if folder.is_dir()
        for each in folder.iterdir()
        if each.name.startswith(incomplete) and (each / f"modeling_{each.name}.py").exists()
    )
    return [*sorted(types), *paths(incomplete)]


def paths(incomplete: str) -> list[str]:
    """Files and folders that begin so, folders with a slash; `~` stays as it is written."""
    written, slash, begin = incomplete.rpartition("/")
    written += slash
    with suppress(OSError, RuntimeError, ValueError):  # cannot be read, a `~name` that nobody has, a NUL
        folder = Path(written).expanduser()
        inside = sorted(each for each in folder.iterdir() if each.name.startswith(begin))
        return [
            f"{written}{each.name}{'/' if each.is_dir() else ''}"
            for each in inside
            if _shown(each.name, begin) and each.name == visible(each.name)
        ]
    return []


def _shown(name: str, begin: str) -> bool:
    """Hidden files only where a dot was typed."""
    return begin.startswith(".") or not name.startswith(".")


def codes(incomplete: str) -> list[tuple[str, str]]:
    """Codes of findings, with their names."""
    return [(code, rule.name) for code, rule in rules().items() if code.startswith(incomplete)]


def readings(incomplete: str) -> list[str]:
    """Names of clients; after an `@`, clients with their versions."""
    known = [*clients(), *(f"{each.client}@{each.version}" for each in DIALECTS)]
    return [name for name in known if name.startswith(incomplete) and ("@" in incomplete or "@" not in name)]


def addressees(incomplete: str) -> list[str]:
    """Names of clients, and `all`."""
    return [*readings(incomplete), *(["all"] if "all".startswith(incomplete) else [])]


def several_readings(incomplete: str) -> list[str]:
    """The last name of a comma-separated list of clients."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in readings(last)]
