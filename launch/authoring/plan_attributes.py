"""Which class attributes, in which source files, have to change so that a model carries a plan."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path

from libcst import ParserSyntaxError
from torch import nn

from shardproof.launch.authoring.installed_files import is_installed
from shardproof.launch.authoring.source_files import diff, display_path, rewrite
from shardproof.launch.result import MisuseError
from shardproof.planner.ir.plan import Plan, PpEntry, TpEntry, join, owner_of
from shardproof.planner.loading.carried_plan import base_prefix, plan_owners
from shardproof.planner.loading.load import LoadedModel
from shardproof.verify.report.attributes import Mapped, NoClassError, with_attributes

_REMOTE_CODE = "transformers_modules"
"""The package that Transformers copies a checkpoint's code into (`dynamic_module_utils.py`, 5.23.0)."""

_GENERATED = "This file was automatically generated from"
"""What Transformers writes on top of the files that it makes from a `modular_*.py`."""


@dataclass(frozen=True, slots=True)
class Change:
    """New values for attributes of one class in one file; `fields` says that the class is a dataclass."""

    file: Path
    class_name: str
    attributes: Mapping[str, Mapped]
    installed: bool
    generated: bool
    fields: bool = False


def changes(loaded: LoadedModel, model: nn.Module, plan: Plan) -> tuple[Change, ...]:
    """The changes after which the model carries the plan; empty where it does already.

    An axis without entries in the plan (tensor, pipeline, expert) is left as it is. The parts
    of a model made of models get their entries in their own config classes, relative to themselves.
    """
    found = []
    for owner, _, attributes in _wanted(loaded, model, plan):
        different = {name: value for name, value in attributes.items() if not _carries(owner, name, value)}
        if different:
            file = _file(owner, loaded)
            generated = _GENERATED in file.read_text(errors="replace")[:2000]
            found.append(
                Change(file, owner.__qualname__, different, is_installed(file), generated, fields=is_dataclass(owner))
            )
    return tuple(found)


def not_read(loaded: LoadedModel, model: nn.Module, plan: Plan) -> tuple[str, ...]:
    """`Class.attribute` for every plan attribute of the built model that differs from the plan; clients read the built model.

    An instance may differ from its class: `__init__`, a dataclass field or config.json may set the attribute again.
    """
    return tuple(
        f"{owner.__qualname__}.{name}"
        for owner, holder, attributes in _wanted(loaded, model, plan)
        for name, value in attributes.items()
        if not _carries(holder, name, value)
    )


def _wanted(loaded: LoadedModel, model: nn.Module, plan: Plan) -> Iterator[tuple[type, object, dict[str, Mapped]]]:
    """For each class: the class, the object that clients read its attributes from, and the values that they should have."""
    owners, prefix = plan_owners(model), base_prefix(model)
    tensor, pipeline = bool(plan.tp or plan.head_tp), bool(plan.pp or plan.head_pp)
    for path, config_class in owners.items():
        attributes: dict[str, Mapped] = {}
        if tensor:
            attributes["base_model_tp_plan"] = _tp(plan.tp, path, owners)
        if pipeline:
            attributes["base_model_pp_plan"] = _pp(plan.pp, path, owners)
        if plan.ep:
            attributes["base_model_ep_plan"] = _tp(plan.ep, path, owners)
        yield config_class, model.get_submodule(join(prefix, path)).config, attributes
    head: dict[str, Mapped] = {}
    if tensor:
        head["_tp_plan"] = {entry.pattern: entry.style for entry in plan.head_tp}
    if pipeline:
        head["_pp_plan"] = {entry.module: (entry.inputs, entry.outputs) for entry in plan.head_pp}
    yield loaded.model_class, loaded.model_class, head


def _tp(entries: tuple[TpEntry, ...], path: str, owners: Mapping[str, type]) -> dict[str, str]:
    mine = [entry for entry in entries if owner_of(entry.pattern, owners) == path]
    return {entry.pattern.removeprefix(f"{path}."): entry.style for entry in mine}


def _pp(entries: tuple[PpEntry, ...], path: str, owners: Mapping[str, type]) -> Mapped:
    mine = [entry for entry in entries if owner_of(entry.module, owners) == path]
    return {entry.module.removeprefix(f"{path}."): (entry.inputs, entry.outputs) for entry in mine}


def _carries(holder: object, name: str, wanted: Mapped) -> bool:
    """Whether the class or config has this value, itself or by inheritance; no plan and an empty plan count as equal."""
    have: object = getattr(holder, name, None) or {}
    if not isinstance(have, Mapping):
        return False
    if name.endswith("pp_plan"):
        stages = [(key, tuple(map(tuple, value))) for key, value in have.items()]
        return stages == list(wanted.items())
    return dict(have) == dict(wanted)


def _file(owner: type, loaded: LoadedModel) -> Path:
    """The file that defines a class; of a checkpoint's code the original, not the copy that was imported."""
    if owner.__module__.partition(".")[0] == _REMOTE_CODE:
        return _original(owner, loaded)
    try:
        found = inspect.getsourcefile(owner)
    except (OSError, TypeError):
        found = None
    if found is None or not Path(found).is_file():
        raise MisuseError(f"{owner.__qualname__} has no source file to write into; paste the plan by hand.")
    return Path(found).resolve()


def _original(owner: type, loaded: LoadedModel) -> Path:
    name = owner.__module__.rpartition(".")[2] + ".py"
    reference = Path(loaded.name)
    folder = reference if reference.is_dir() else reference.parent
    if reference.exists() and (folder / name).is_file():
        return (folder / name).resolve()
    raise MisuseError(
        f"{owner.__qualname__} is code of {loaded.title} on the Hub, and what lies here is a copy; "
        "write into a clone of that repository, given as a folder."
    )


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: a unified diff (empty where the model carried the plan already), notes for the user, and the files."""

    diff: str
    notes: tuple[str, ...]
    files: tuple[Path, ...] = ()


def write_plan(loaded: LoadedModel, model: nn.Module, plan: Plan, *, allow_installed: bool = False) -> Written:
    """Write the plan into the files that define the model's classes, all of them or none.

    Raises:
        MisuseError: a file belongs to an installed package and `allow_installed` is false, or a file cannot be changed.
    """
    found = changes(loaded, model, plan)
    if not found and (lost := not_read(loaded, model, plan)):
        raise MisuseError(f"the class statements carry this plan already, but {overruled(lost)}")
    if not found:
        return Written("", (f"{loaded.title} carries this plan already; there is nothing to write.",))
    for change in found:
        if change.installed and not allow_installed:
            raise MisuseError(
                f"{change.class_name} is defined in {change.file.name} of an installed package, which the next upgrade "
                "overwrites; give a model of your own source, or --allow-installed."
            )
    before = {change.file: change.file.read_bytes() for change in found}
    after = dict(before)
    for change in found:
        after[change.file] = _edited(change, after[change.file])
    text = diff(before, after)
    rewrite(before, after)
    names = " ".join(display_path(file) for file in before)
    generated = [
        f"{display_path(c.file)} is generated from a modular file; write the plan there as well."
        for c in found
        if c.generated
    ]
    return Written(
        text, (f"wrote {names}; `plan undo {names}` takes it back.", *dict.fromkeys(generated)), tuple(before)
    )


def overruled(names: tuple[str, ...]) -> str:
    """The end of a sentence about attributes that are set again elsewhere."""
    return (
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} set again elsewhere: by a later statement, a property, "
        "__init__, a dataclass field or config.json. Remove that first."
    )


def _edited(change: Change, source: bytes) -> bytes:
    try:
        return with_attributes(source, change.class_name, change.attributes, fields=change.fields)
    except (NoClassError, ParserSyntaxError) as error:
        why = "holds no such class statement" if isinstance(error, NoClassError) else "is not valid Python"
        raise MisuseError(f"{change.class_name}: {display_path(change.file)} {why}; paste the plan by hand.") from error
