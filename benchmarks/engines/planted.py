"""Models with one fault of the backend contract planted in their source, served like a family: what the engine makes of each
stands beside what `plan check` said.
"""

from functools import cache
from pathlib import Path

from benchmarks.contract import MODELS, Planted, faults, with_context
from benchmarks.engines.families import CUSTOM, ROOT
from shardproof.planner.loading.load import LoadedModel, load


@cache
def planted() -> dict[str, tuple[Planted, str]]:
    """Every fault by model and name, with the model's class."""
    found: dict[str, tuple[Planted, str]] = {}
    for model in MODELS:
        file, _, kind = CUSTOM[model].partition(":")
        for fault in faults((ROOT / file).read_text()):
            found[f"{model}: {fault.name}"] = fault, kind
    return found


def planted_family(name: str, folder: Path) -> LoadedModel:
    """The model with the fault; its source is written to a module of its own, which the checkpoint carries."""
    fault, kind = planted()[name]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"planted_{list(planted()).index(name)}.py"
    file.write_text(with_context(fault))
    return load(f"{file}:{kind}", trust_remote_code=True)
