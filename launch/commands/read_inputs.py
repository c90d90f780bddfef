"""Read the model, the client and the plan file that a command line names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardproof.launch.output.console import Progress
from shardproof.launch.result import MisuseError
from shardproof.planner.ir.plan import Plan, PlanError
from shardproof.planner.loading.json_file import JsonFileError, read_json

if TYPE_CHECKING:
    from shardproof.planner.loading.load import LoadedModel
    from shardproof.verify.clients.dialect import Dialect


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as the command line names it; `overrides` are config fields and their values as text."""

    reference: str
    overrides: Mapping[str, str]
    trust_remote_code: bool = False


def read_model(model: ModelReference, progress: Progress) -> "LoadedModel":
    """Read the config and find the class.

    Raises:
        LoadError: the reference names no model.
    """
    with progress.step(f"reading {model.reference}"):
        from shardproof.planner.loading.load import load

        return load(model.reference, overrides=model.overrides, trust_remote_code=model.trust_remote_code)


def read_dialect(name: str) -> "Dialect":
    """The dialect of a client.

    Raises:
        MisuseError: there is no client of that name.
    """
    from shardproof.verify.clients.registry import find_dialect

    try:
        return find_dialect(name)
    except ValueError as error:
        raise MisuseError(str(error)) from error


def read_plan(path: Path) -> Plan:
    """The plan in a plan file (JSON).

    Raises:
        MisuseError: there is no such file, or no plan can be read from it.
    """
    try:
        return Plan.from_json(read_json(path))
    except FileNotFoundError as error:
        raise MisuseError(
            f"{path}: there is no such plan file; `plan suggest MODEL --format json` writes one."
        ) from error
    except JsonFileError as error:
        raise MisuseError(f"{path}: this plan file {error}; correct it there.") from error
    except PlanError as error:
        raise MisuseError(f"{path}: {error}.") from error
