"""Read the model, the client and the plan file that a command line names."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardproof.launch.output.console import Progress
from shardproof.launch.ranks.job import in_job
from shardproof.launch.result import MisuseError
from shardproof.planner.ir.plan import Plan, PlanError
from shardproof.planner.loading.json_file import MOST, JsonFileError, parse_json, read_json

if TYPE_CHECKING:
    from shardproof.planner.loading.load import LoadedModel
    from shardproof.verify.clients.dialect import Dialect


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as the command line names it; `overrides` are config fields and their values as text, `inputs` what the forward
    of a module is given, `adapters` folders of PEFT's adapters, `attention` and `experts` implementations that were asked for.
    """

    reference: str
    overrides: Mapping[str, str]
    trust_remote_code: bool = False
    inputs: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    attention: str | None = None
    experts: str | None = None


def read_model(model: ModelReference, progress: Progress) -> "LoadedModel":
    """Read the config and find the class.

    Raises:
        LoadError: the reference names no model, or an adapter does not fit it.
    """
    with progress.step(f"reading {model.reference}"):
        from shardproof.planner.loading.load import load

        return load(
            model.reference,
            overrides=model.overrides,
            trust_remote_code=model.trust_remote_code,
            inputs=model.inputs,
            adapters=model.adapters,
            attention=model.attention,
            experts=model.experts,
        )


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


STDIN = Path("-")
"""The name of standard input as a plan file."""


def read_plan(path: Path) -> Plan:
    """The plan in a plan file (JSON), or on standard input.

    Raises:
        MisuseError: there is no such file, or no plan can be read from it.
    """
    try:
        return Plan.from_json(parse_json(_standard_input()) if path == STDIN else read_json(path))
    except FileNotFoundError as error:
        raise MisuseError(
            f"{path}: there is no such plan file; `plan suggest MODEL --format json` writes one."
        ) from error
    except JsonFileError as error:
        raise MisuseError(f"{path}: this plan file {error}; correct it there.") from error
    except PlanError as error:
        raise MisuseError(f"{path}: {error}.") from error


def _standard_input() -> str:
    if in_job():
        raise MisuseError("--plan -: the ranks of a job have no standard input in common; give a file.")
    if sys.stdin is None:
        raise MisuseError("--plan -: standard input is closed; give a file.")
    try:
        text = sys.stdin.buffer.read(MOST + 1)
        if len(text) > MOST:
            raise JsonFileError(f"has more than {MOST // 2**20} MiB")
        return text.decode()
    except UnicodeDecodeError as error:
        raise JsonFileError("is not text in UTF-8") from error
    except OSError as error:
        raise JsonFileError(f"cannot be read ({type(error).__name__})") from error
