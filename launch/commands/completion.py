"""Shell completion: the candidates for an incomplete word. Neither torch nor Transformers is loaded, since the shell waits for
it.
"""

from importlib.util import find_spec
from pathlib import Path

from shardproof.verify.clients.registry import DIALECTS, clients
from shardproof.verify.findings.catalogue import rules


def models(incomplete: str) -> list[str]:
    """Model types of the installed Transformers; the shell completes files by itself."""
    found = find_spec("transformers")
    folders = (Path(place) / "models" for place in (found.submodule_search_locations if found else None) or ())
    return sorted(
        each.name
        for folder in folders
        for each in folder.glob(f"{incomplete}*")
        if (each / f"modeling_{each.name}.py").exists()
    )


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
