"""What a shell is told that could be meant, without loading torch or Transformers: it asks at every press of a key."""

from importlib.util import find_spec
from pathlib import Path

from shardproof.verify.clients.registry import DIALECTS, clients
from shardproof.verify.findings.catalogue import rules


def models(incomplete: str) -> list[str]:
    """Model types of the installed Transformers; files the shell finds by itself."""
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
    """Clients, and their versions once one is named."""
    known = [*clients(), *(f"{each.client}@{each.version}" for each in DIALECTS)]
    return [name for name in known if name.startswith(incomplete) and ("@" in incomplete or "@" not in name)]


def addressees(incomplete: str) -> list[str]:
    """Clients, and all of them at once."""
    return [*readings(incomplete), *(["all"] if "all".startswith(incomplete) else [])]


def several_readings(incomplete: str) -> list[str]:
    """The last of clients with commas between them."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in readings(last)]
