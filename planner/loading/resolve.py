"""From a reference in words (a model type, a path, a Hub id, a class) to a config and a model class."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import transformers
from huggingface_hub import try_to_load_from_cache
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from shardproof.planner.ir.errors import LoadError, reason
from shardproof.planner.ir.readable_text import listing, nearest
from shardproof.planner.loading.configs.config_defaults import repaired
from shardproof.planner.loading.configs.configure import configure
from shardproof.planner.loading.custom_code import (
    class_from_checkpoint,
    class_from_file,
    class_from_module,
    code_file,
    config_class_of,
    references_of,
)
from shardproof.planner.loading.json_file import JsonFileError, read_json
from shardproof.planner.loading.model_class import Pair, architecture, paired

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


_MODEL_KEYS = ("AutoModelForCausalLM", "AutoModel")


_FORMS = (
    "a Transformers model type, a config.json, a checkpoint folder, a GGUF file, a Hub id, file.py:Class or "
    "package.module:Class"
)


Fields: TypeAlias = Mapping[str, object]


LONGEST = 1000
"""Characters of the longest reference: of paths, and of names in them, systems take no more than a few times that."""


_Found: TypeAlias = tuple[PreTrainedConfig, type[PreTrainedModel], Path | None]


def resolve(reference: str, overrides: Mapping[str, str], trusted: bool) -> _Found:
    """The config, the class and the checkpoint of a reference; `trusted` says whether code beside a config.json may run.

    Raises:
        LoadError: the reference names no model, or an override names no field.
    """
    if len(reference) > LONGEST or "\0" in reference:
        raise LoadError(f"{reference[:60]}...: no path and no name is like this; give {_FORMS}.")
    path = Path(reference)
    head, colon, class_name = reference.rpartition(":")
    if not reference.strip():
        raise LoadError(f"The reference is empty; give {_FORMS}.")
    is_type = reference in CONFIG_MAPPING
    if path.suffix == ".gguf":
        return _from_gguf(path, overrides, name=reference)
    if reference.endswith(".json") or (path.is_file() and path.suffix != ".py" and not is_type):
        return _from_config_file(path, overrides, trusted, name=reference)
    if reference.endswith(".py"):
        class_from_file(path, "")
    if colon and head.endswith(".py"):
        return *_from_class(class_from_file(Path(head), class_name), overrides, name=reference), None
    if colon and _MODULE.fullmatch(head):
        return *_from_class(class_from_module(head, class_name), overrides, name=reference), None
    if path.is_dir() and ("/" in reference or not is_type or (path / "config.json").is_file()):
        return _from_folder(path, overrides, trusted, name=reference)
    if is_type:
        config, model_class = paired(
            configure(CONFIG_MAPPING[reference], {}, overrides, name=reference), {}, name=reference
        )
        return repaired(config, model_class), model_class, None
    return _from_cache(reference, overrides, trusted)


def _from_class(model_class: type[PreTrainedModel], overrides: Mapping[str, str], *, name: str) -> Pair:
    return configure(config_class_of(model_class), {}, overrides, name=name), model_class


def _from_folder(path: Path, overrides: Mapping[str, str], trusted: bool, *, name: str) -> _Found:
    file = path / "config.json"
    if not file.is_file():
        raise LoadError(f"{name}: this folder holds no config.json; give the folder of a checkpoint, or {_FORMS}.")
    config, model_class, _ = _from_config_file(file, overrides, trusted, name=name)
    return config, model_class, path


def _from_gguf(path: Path, overrides: Mapping[str, str], *, name: str) -> _Found:
    """A GGUF file: its metadata contain the config, and the file itself is the checkpoint."""
    if not path.is_file():
        raise LoadError(f"{path}: there is no such file; give the path of a GGUF file.")
    try:
        fields: Fields = load_gguf_checkpoint(str(path))["config"]
    except Exception as error:  # the reader raises anything on a damaged file
        raise LoadError(f"{path}: this GGUF file cannot be read ({reason(error)}).") from error
    config = configure(_config_class(fields, name=name), fields, overrides, name=name)
    return *paired(config, fields, name=name), path


def _from_cache(reference: str, overrides: Mapping[str, str], trusted: bool) -> _Found:
    """A Hub id, from the local cache only."""
    if not _HUB_ID.fullmatch(reference) or Path(reference).is_absolute() or reference.startswith("."):
        raise LoadError(f"{reference}: there is no such file or folder; give {_FORMS}.")
    cached = _cached_config(reference)
    if cached is None:
        advice = f"To use a Hub model, first run: hf download {reference}"
        types = nearest(reference, CONFIG_MAPPING.keys())
        raise LoadError(
            f"{reference}: no model type, path, or Hub model in the local cache has this name.{types} {advice}"
        )
    config, model_class, _ = _from_config_file(cached, overrides, trusted, name=reference, code_at=reference)
    return config, model_class, cached.parent


def _cached_config(repo: str) -> Path | None:
    try:
        found = try_to_load_from_cache(repo, "config.json")
    except ValueError:
        return None
    return Path(found) if isinstance(found, str) else None


def _from_config_file(
    path: Path, overrides: Mapping[str, str], trusted: bool, *, name: str, code_at: str | None = None
) -> _Found:
    """A config.json, with custom code next to it or in the repository `code_at`."""
    fields = _read(path)
    auto_map = fields.get("auto_map")
    if isinstance(auto_map, Mapping) and (trusted or not _native(fields)):
        return *_from_auto_map(
            fields, auto_map, overrides, trusted, name=name, folder=code_at or str(path.parent)
        ), None
    config = configure(_config_class(fields, name=name), fields, overrides, name=name)
    return *paired(config, fields, name=name), None


def _read(path: Path) -> Fields:
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        raise LoadError(f"{path}: there is no such file; give the path of a model's config.json.") from error
    except JsonFileError as error:
        raise LoadError(f"{path}: this {error}; correct it there.") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path}: a config.json holds one JSON object, not a {type(value).__name__}.")
    return value


def _native(fields: Fields) -> bool:
    """Whether Transformers itself has both the config class and the model class that a config.json names."""
    return fields.get("model_type") in CONFIG_MAPPING and architecture(fields) is not None


def _config_class(fields: Fields, *, name: str) -> type[PreTrainedConfig]:
    kind, named = fields.get("model_type"), architecture(fields)
    if kind is None and named is not None:
        return config_class_of(named)
    if not isinstance(kind, str):
        raise LoadError(f'{name}: its config.json has no "model_type"; add one, such as "llama".')
    if kind not in CONFIG_MAPPING:
        version = transformers.__version__
        advice = "" if (near := nearest(kind, CONFIG_MAPPING.keys())) else " Custom code needs an auto_map."
        raise LoadError(f"{name}: Transformers {version} has no model type {kind!r}.{near}{advice}")
    found: type[PreTrainedConfig] = CONFIG_MAPPING[kind]
    return found


def _from_auto_map(
    fields: Fields,
    auto_map: Mapping[str, object],
    overrides: Mapping[str, str],
    trusted: bool,
    *,
    name: str,
    folder: str,
) -> Pair:
    keys = [*_MODEL_KEYS, *(key for key in auto_map if key.startswith("AutoModel"))]
    model = next((ref for key in keys for ref in references_of(auto_map.get(key))), None)
    config = next(iter(references_of(auto_map.get("AutoConfig"))), None)
    if model is None:
        raise LoadError(f"{name}: its auto_map names no model; add AutoModelForCausalLM or AutoModel.")
    if not trusted:
        files = listing(list(dict.fromkeys(code_file(ref) for ref in (config, model) if ref)))
        advice = "read it, then give --trust-remote-code to run it"
        raise LoadError(f"{name}: this model needs its own code, which would run {files}; {advice}.")
    config_class = class_from_checkpoint(config, folder) if config is not None else _config_class(fields, name=name)
    model_class = class_from_checkpoint(model, folder)
    if not issubclass(model_class, PreTrainedModel):
        raise LoadError(f"{name}: {model} is not a PreTrainedModel; its auto_map must name one.")
    return configure(config_class, fields, overrides, name=name), model_class
