"""What one version of Transformers says, read in a process that imports it: `python -m benchmarks.versions.facts` prints JSON."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Facts:
    """One version: its number, the styles that it registers, and a digest of the source of each causal-LM type."""

    version: str
    styles: tuple[str, ...]
    sources: Mapping[str, str]


def facts() -> Facts:
    """Of the Transformers that this process imports."""
    from benchmarks.types import causal_types
    from shardproof.planner.transformers_facts.styles import registered
    from shardproof.planner.transformers_facts.version import installed

    return Facts(installed(), tuple(sorted(registered())), {name: _digest(name) for name in causal_types()})


def facts_of(text: str) -> Facts:
    """What `main` printed."""
    data = json.loads(text)
    return Facts(data["version"], tuple(data["styles"]), data["sources"])


def _digest(name: str) -> str:
    """Of the files of the folder that holds the type's code; several types may share one. Empty where it has none."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    found = find_spec(f"transformers.models.{model_type_to_module_name(name)}")
    folders = list(found.submodule_search_locations or ()) if found else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16] if files else ""


if __name__ == "__main__":
    print(json.dumps(asdict(facts())))
