"""Adapters of a model: read from the folders that PEFT saves, checked against the model, or taken from a PeftModel."""

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.ir.errors import LoadError, reason
from shardproof.planner.ir.readable_text import listing, nearest
from shardproof.planner.loading.adapters.adapted_class import Adapter, adapter_layers, inject, peft
from shardproof.planner.loading.build import build
from shardproof.planner.loading.json_file import JsonFileError, read_json
from shardproof.planner.loading.load import LoadedModel, with_adapter_classes
from shardproof.planner.loading.quiet import quiet

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def with_adapters(loaded: LoadedModel, folders: Sequence[str]) -> LoadedModel:
    """The model with the adapters in these folders, all active. The first is called `default`, as PEFT calls it.

    Raises:
        LoadError: PEFT is not installed; a folder holds no adapter that PEFT can put into this model; or its weights have other
            shapes than this model gives it.
    """
    if not folders:
        return loaded
    if loaded.is_module:
        raise LoadError(f"{loaded.title} is no Transformers model: give --adapter with one, or load a PeftModel.")
    adapters: list[Adapter] = []
    for folder in folders:
        taken = {adapter.name for adapter in adapters}
        adapters.append(_read(loaded, Path(folder), _name(Path(folder), taken)))
    for adapter, folder in zip(adapters, folders, strict=True):
        _check(loaded, adapter, Path(folder))
    return adapted(loaded, adapters)


def adapted(loaded: LoadedModel, adapters: Sequence[Adapter]) -> LoadedModel:
    """The model with these adapters; its checkpoint is that of the base model.

    Raises:
        LoadError: PEFT cannot put them into this model together.
    """
    found = with_adapter_classes(loaded, tuple(adapters))
    build(found)
    return found


def of_peft_model(model: nn.Module) -> LoadedModel | None:
    """What a PeftModel around a Transformers model is: that model's class and config with the active adapters; None for any
    other module.
    """
    inner = getattr(model, "get_base_model", None)
    if inner is None or not any(kind.__module__.startswith("peft.") for kind in type(model).__mro__):
        return None
    base = inner()
    if not isinstance(base, PreTrainedModel):
        return None
    configs: dict[str, Any] = getattr(model, "peft_config")  # noqa: B009
    active: list[str] = getattr(model, "active_adapters")  # noqa: B009
    loaded = LoadedModel(type(base).__name__, deepcopy(base.config), type(base))
    return adapted(loaded, [Adapter.of(name, configs[name].to_dict()) for name in active])


def _name(folder: Path, taken: set[str]) -> str:
    if not taken:
        return "default"
    plain = "a_" + re.sub(r"\W+", "_", folder.resolve().name)
    return next(name for name in (plain, *(f"{plain}_{again}" for again in range(2, 1000))) if name not in taken)


def _read(loaded: LoadedModel, folder: Path, name: str) -> Adapter:
    where = f"--adapter {folder}"
    if not folder.is_dir():
        raise LoadError(f"{where}: there is no such folder; give one that PEFT's save_pretrained wrote.")
    try:
        fields = read_json(folder / CONFIG)
    except FileNotFoundError as error:
        raise LoadError(
            f"{where}: this folder holds no {CONFIG}; give one that PEFT's save_pretrained wrote."
        ) from error
    except JsonFileError as error:
        raise LoadError(f"{where}: its {CONFIG} {error}; correct it there.") from error
    if not isinstance(fields, dict):
        raise LoadError(f"{where}: its {CONFIG} holds one JSON object, not a {type(fields).__name__}.")
    library = peft()
    method, known = fields.get("peft_type"), [str(kind.value) for kind in library.PeftType]
    if method not in known:
        near = nearest(str(method), known)
        raise LoadError(f"{where}: PEFT {library.__version__} has no method {method!r} (peft_type).{near}")
    _refuse_another_base(loaded, fields, where)
    return Adapter.of(name, _config_fields(library, folder, where), folder=str(folder.resolve()))


def _config_fields(library: Any, folder: Path, where: str) -> dict[str, Any]:
    try:
        with quiet():
            found: dict[str, Any] = library.PeftConfig.from_pretrained(str(folder)).to_dict()
    except Exception as error:  # a config class of PEFT may raise anything on wrong fields
        raise LoadError(f"{where}: PEFT cannot read its {CONFIG} ({reason(error)}); correct it there.") from error
    return found


def _refuse_another_base(loaded: LoadedModel, fields: dict[str, Any], where: str) -> None:
    """Raise `LoadError` where the adapter names a base model of another type."""
    own, base = loaded.config.model_type, fields.get("base_model_name_or_path")
    kind = _type_of(Path(base)) if isinstance(base, str) and base else None
    mapping = fields.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    classes = {one.__name__ for one in loaded.model_class.__mro__}
    if (kind is not None and kind != own) or (named and named not in classes):
        what = named if named and named not in classes else f"a {kind} ({Path(str(base)).name})"
        raise LoadError(
            f"{where}: it was trained on {what}, and {loaded.title} is a {own}; give the adapter's own base model."
        )


def _type_of(folder: Path) -> object:
    """The model type in a folder's config.json; None where there is none to be read."""
    try:
        fields = read_json(folder / "config.json")
    except (FileNotFoundError, JsonFileError):
        return None
    return fields.get("model_type") if isinstance(fields, dict) else None


def _check(loaded: LoadedModel, adapter: Adapter, folder: Path) -> None:
    """Raise `LoadError` where this adapter alone does not fit the model."""
    where = f"--adapter {folder}"
    model = build(loaded)
    assert isinstance(model, PreTrainedModel)
    if missing := list(_targets_of_nothing(adapter, model)):
        raise LoadError(
            f"{where}: no module of {loaded.title} is called {listing(missing)}; correct target_modules there."
        )
    try:
        with quiet():
            inject(model, (replace(adapter, name="default"),))
    except Exception as error:  # a tuner of PEFT may raise anything on a model that it does not fit
        raise LoadError(f"{where}: PEFT cannot put it into {loaded.title} ({reason(error)}).") from error
    if not adapter_layers(model):
        raise LoadError(f"{where}: it changes no module of {loaded.title}; give the adapter's own base model.")
    if (folder / WEIGHTS).is_file():
        _check_weights(folder / WEIGHTS, model, where=where, title=loaded.title)


def _targets_of_nothing(adapter: Adapter, model: nn.Module) -> Iterator[str]:
    """Names in `target_modules` that no module of the model has; an expression or a word for several is PEFT's to read."""
    names = adapter.as_mapping().get("target_modules")
    paths = [f".{path}" for path, _ in model.named_modules()]
    for name in names if isinstance(names, list) else ():
        if not any(path.endswith(f".{name}") for path in paths):
            yield str(name)


def _check_weights(file: Path, model: nn.Module, *, where: str, title: str) -> None:
    expected = {as_saved(name): list(value.shape) for name, value in model.named_parameters()}
    try:
        with safe_open(file, framework="pt") as weights:
            held = {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except Exception as error:  # a file that is damaged
        raise LoadError(f"{where}: its {WEIGHTS} cannot be read ({reason(error)}).") from error
    for name, shape in held.items():
        path = name.removeprefix("base_model.model.")
        needs = expected.get(path, expected.get(f"{path}.weight"))
        if needs is None:
            raise LoadError(
                f"{where}: it holds {path}, for which {title} has no module; give the adapter's own base model."
            )
        if needs != shape:
            raise LoadError(
                f"{where}: its {path} has the shape {shape}, and {title} needs {needs}; give its own base model."
            )


def as_saved(name: str, adapter: str = "default") -> str:
    """The name of a parameter in the file that PEFT saves: without the name of the adapter."""
    return re.sub(rf"(\.modules_to_save)?\.{re.escape(adapter)}(?=\.|$)", "", name)
