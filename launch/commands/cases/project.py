"""`[tool.shardproof]` in the pyproject.toml of the current folder: what `plan verify` and `plan check` do without a model."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shardproof.launch.commands.cases.request import Level, RunLayout, run_layout
from shardproof.launch.result import MisuseError
from shardproof.planner.ir.readable_text import nearest

FILE = Path("pyproject.toml")
_KEYS = ("models", "degrees", "levels", "clients", "plans", "trusted")
_LARGEST = 2**20


@dataclass(frozen=True, slots=True)
class Project:
    """The models of a project and how they are verified.

    `plans` has the plan files of some models, by reference. Code of the checkpoints in the folders `trusted` may run.
    """

    models: tuple[str, ...]
    layouts: tuple[RunLayout, ...] = ()
    levels: tuple[Level, ...] = ()
    clients: tuple[str, ...] = ()
    plans: Mapping[str, Path] = field(default_factory=dict)
    trusted: tuple[Path, ...] = ()

    def trusts(self, reference: str) -> bool:
        """Whether the code of a model may run: the model lies in one of the trusted folders."""
        path = Path(reference).resolve()
        return any(path.is_relative_to(folder.resolve()) for folder in self.trusted)


def read_project(file: Path = FILE) -> Project:
    """The table `[tool.shardproof]`.

    Only the current folder is looked at, so that no pyproject.toml of a folder above, such as /tmp, grants trust.

    Raises:
        MisuseError: there is no such table, or a key of it is wrong.
    """
    table = _table(file)
    for key in table:
        if key not in _KEYS:
            raise _wrong(f"has no key {key!r}.{nearest(key, _KEYS, count=1)} Its keys are {', '.join(_KEYS)}")
    models = _texts(table, "models")
    if not models:
        raise _wrong("names no models; add models = [...]")
    trusted = tuple(map(Path, _texts(table, "trusted")))
    for folder in trusted:
        if folder.is_absolute() or ".." in folder.parts:
            raise _wrong(f"trusts {folder}; only folders of this project can be trusted, as paths from its folder on")
    return Project(
        models,
        _layouts(table.get("degrees", [])),
        tuple(_level(text) for text in _texts(table, "levels")),
        _texts(table, "clients"),
        _plans(table.get("plans", {}), models),
        trusted,
    )


def _wrong(what: str) -> MisuseError:
    return MisuseError(f"[tool.shardproof] in {FILE} {what}.")


def _table(file: Path) -> Mapping[str, object]:
    missing = f"give a MODEL, or name models under [tool.shardproof] in the {FILE} of the current folder"
    try:
        if file.stat().st_size > _LARGEST or not file.is_file():
            raise MisuseError(f"{file} is no file of at most {_LARGEST} bytes; {missing}.")
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MisuseError(f"there is no model to work on: {missing}.") from error
    except OSError as error:
        raise MisuseError(f"{file} cannot be read ({type(error).__name__}); {missing}.") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, nested too deep
        raise MisuseError(
            f"{file} is not valid TOML ({' '.join(str(error).split())[:120]}); correct it there."
        ) from error
    tools = found.get("tool")
    table = tools.get("shardproof") if isinstance(tools, dict) else None
    if not isinstance(table, dict):
        raise MisuseError(f"there is no model to work on: {missing}.")
    return table


def _texts(table: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise _wrong(f"has {key} = {str(value)[:60]}, and not a list of texts")
    return tuple(value)


def _level(text: str) -> Level:
    if text not in tuple(Level):
        raise _wrong(f"names the level {text!r}.{nearest(text, Level, count=1)} The levels are {', '.join(Level)}")
    return Level(text)


def _layouts(value: object) -> tuple[RunLayout, ...]:
    """Numbers are tensor-parallel degrees; a table has `tp`, `pp` and `ep`."""
    if not isinstance(value, list):
        raise _wrong(f"has degrees = {str(value)[:60]}, and not a list such as [2, 4, {{tp = 2, pp = 2}}]")
    return tuple(_layout(each) for each in value)


def _layout(value: object) -> RunLayout:
    table = value if isinstance(value, dict) else {"tp": value}
    counts = {key: _count(each) for key, each in table.items()}
    if not counts or not counts.keys() <= {"tp", "pp", "ep"} or 0 in counts.values():
        raise _wrong(f"has a degree {str(value)[:60]}, and not a number from 1 up or a table of tp, pp and ep")
    return run_layout(counts.get("tp"), counts.get("pp"), ranks=None, ep=counts.get("ep"))


def _count(value: object) -> int:
    """A whole number from 1 up; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _plans(value: object, models: Sequence[str]) -> Mapping[str, Path]:
    if not isinstance(value, dict) or not all(isinstance(file, str) and file for file in value.values()):
        raise _wrong(f"has plans = {str(value)[:60]}, and not a table from a model to a plan file")
    for model in value:
        if model not in models:
            raise _wrong(f"has a plan for {model!r}, which is none of its models.{nearest(model, models, count=1)}")
    return {model: Path(file) for model, file in value.items()}
