"""The model and the plan that a command was given, read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardproof.launch.output.console import Progress
from shardproof.launch.result import MisuseError
from shardproof.planner.ir.plan import Plan, PlanError

if TYPE_CHECKING:
    from shardproof.planner.loading.load import LoadedModel
    from shardproof.verify.clients.dialect import Dialect


@dataclass(frozen=True, slots=True)
class Model:
    """Which model: the reference and how it is to be read."""

    reference: str
    overrides: Mapping[str, str]
    trust_remote_code: bool = False


def read_model(model: Model, progress: Progress) -> "LoadedModel":
    """The config and the class; `LoadError` where the reference names none."""
    with progress.step(f"reading {model.reference}"):
        from shardproof.planner.loading.load import load

        return load(model.reference, overrides=model.overrides, trust_remote_code=model.trust_remote_code)


def read_dialect(name: str) -> "Dialect":
    """The dialect of a client. `MisuseError` where there is none of this name."""
    from shardproof.verify.clients.registry import find_dialect

    try:
        return find_dialect(name)
    except ValueError as error:
        raise MisuseError(str(error)) from error


def read_plan(path: Path) -> Plan:
    """The plan of a plan file. `MisuseError` where there is none, or none that can be read."""
    try:
        return Plan.from_json(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise MisuseError(
            f"{path}: there is no such plan file; `plan suggest MODEL --format json` writes one."
        ) from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise MisuseError(
            f"{path}: this plan file is not valid JSON ({error.msg} at {place}); correct it there."
        ) from error
    except PlanError as error:
        raise MisuseError(f"{path}: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise MisuseError(
            f"{path}: this plan file cannot be read ({type(error).__name__}); give a JSON file."
        ) from error
