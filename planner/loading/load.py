"""From a reference (a model type, a config.json, a checkpoint folder, a Hub id, a class) to a config and a model class."""

import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from logging import ERROR
from pathlib import Path
from typing import TypeAlias

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from shardproof.planner.ir.errors import ArgumentError, LoadError, reason
from shardproof.planner.ir.readable_text import listing, nearest
from shardproof.planner.loading.adapters.adapted_class import Adapter, adapted_class
from shardproof.planner.loading.any_module import ModuleConfig, adopting, declared
from shardproof.planner.loading.config import configure
from shardproof.planner.loading.config_defaults import empty_fields, repaired
from shardproof.planner.loading.config_fields import impossible
from shardproof.planner.loading.custom_code import (
    FILE_PACKAGE,
    class_from_checkpoint,
    class_from_file,
    class_from_module,
    code_file,
    config_class_of,
    references_of,
)
from shardproof.planner.loading.json_file import JsonFileError, read_json
from shardproof.planner.loading.model_class import Pair, architecture, paired
from shardproof.planner.loading.source_lines import built_at
from shardproof.planner.loading.version_breaks import version_advice

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_MODEL_KEYS = ("AutoModelForCausalLM", "AutoModel")
_FORMS = (
    "a Transformers model type, a config.json, a checkpoint folder, a GGUF file, a Hub id, file.py:Class or "
    "package.module:Class"
)

Fields: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class LoadedModel:
    """A model that can be built: the reference as given, its config, the class with the head, its checkpoint folder.

    `load(name, overrides=dict(overrides), trust_remote_code=trust_remote_code)` gives an equal one in another process.
    """

    name: str
    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    checkpoint: Path | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    trust_remote_code: bool = False
    adapters: tuple[Adapter, ...] = ()

    @property
    def title(self) -> str:
        """The name for reports: only the last part of a path, since reports contain no absolute paths."""
        return Path(self.name).name if Path(self.name).is_absolute() else self.name

    @property
    def is_module(self) -> bool:
        """Whether this is a module of any class, which Transformers does not know, and no config of which carries a plan."""
        return isinstance(self.config, ModuleConfig)

    @property
    def base_class(self) -> type[PreTrainedModel]:
        """The model class without adapters."""
        found: type[PreTrainedModel] = getattr(self.model_class, "adapted", self.model_class)
        return found

    def __reduce__(self) -> tuple[Callable[..., "LoadedModel"], tuple[object, ...]]:
        """Pickle the reference. A class from a file given by path has no importable module, so unpickling loads it again.

        Raises:
            PicklingError: the module was made in memory, and nothing can load it again.
        """
        if self.adapters:
            return with_adapter_classes, (replace(self, model_class=self.base_class, adapters=()), self.adapters)
        if self.name in _IN_MEMORY:
            raise pickle.PicklingError("it was made in memory: give file.py:function, which makes it")
        fields = (self.name, self.config, self.model_class, self.checkpoint, self.overrides, self.trust_remote_code)
        again = self.model_class.__module__.startswith(FILE_PACKAGE)
        return _unpickled, (self.name, self.overrides if again else None, pickle.dumps(fields))


def load(
    reference: str | nn.Module,
    *,
    overrides: Mapping[str, object] | None = None,
    trust_remote_code: bool = False,
    inputs: Sequence[str] = (),
    adapters: Sequence[str] = (),
) -> LoadedModel:
    """Resolve a reference, without the network.

    A path takes precedence over a model type of the same name only if it contains a slash, or a config.json is in it.

    Args:
        reference: a model type, a config.json, a checkpoint folder, a GGUF file, a Hub id, a class, a function that makes a
            module, or a module itself (which other processes cannot load: it is proved, and not run).
        overrides: fields of the config. A string is parsed as JSON if it is valid JSON; any other value is used as it is.
        trust_remote_code: whether code next to a config.json may run.
        inputs: what the forward of a module that is no Transformers model is given, as `NAME: DTYPE[DIMS]`; without them, they
            are guessed from its first layers.
        adapters: folders of adapters that PEFT saved, which are put into the model.

    Raises:
        ArgumentError: an input is not of its form, or is given for a Transformers model.
        LoadError: the reference names no model, an override names no field, or an adapter does not fit.
    """
    from shardproof.planner.loading.adapters.adapter_folders import of_peft_model, with_adapters  # they load

    if isinstance(reference, nn.Module):
        return with_adapters(of_peft_model(reference) or _of_module(reference, inputs), adapters)
    given = {key: _as_written(key, value) for key, value in (overrides or {}).items()}
    with quiet():
        config, model_class, checkpoint = _resolve(reference, given, trust_remote_code)
    if refused := next(impossible(config), None):
        raise LoadError(f"{reference}: {refused}; correct it in the config or with --set.")
    _declare(config, inputs, name=reference)
    loaded = LoadedModel(reference, config, model_class, checkpoint, tuple(given.items()), trust_remote_code)
    return with_adapters(loaded, adapters)


_IN_MEMORY: set[str] = set()
"""The names of modules that were given to `load` themselves."""


def _of_module(module: nn.Module, inputs: Sequence[str]) -> LoadedModel:
    """A module that was made already: a copy of it is what every build gives."""
    name = type(module).__name__

    def copied() -> nn.Module:
        return deepcopy(module)

    model_class = adopting(copied, where=f"{name} {id(module):x}", package=FILE_PACKAGE, name=name)
    _IN_MEMORY.add(name)
    config = config_class_of(model_class)()
    _declare(config, inputs, name=name)
    return LoadedModel(name, config, model_class)


def _declare(config: PreTrainedConfig, inputs: Sequence[str], *, name: str) -> None:
    if not inputs:
        return
    if not isinstance(config, ModuleConfig):
        raise ArgumentError(f"{name} is a Transformers model, whose inputs are known: leave --input out.")
    declared(inputs, config, rows=1, length=1)
    config.declared_inputs = list(inputs)


def _as_written(key: str, value: object) -> str:
    """A value in the form of `--set`: a string unchanged, any other value as JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise LoadError(
            f"the override {key} holds {type(value).__name__}, which no config.json can; give JSON."
        ) from error


def with_adapter_classes(loaded: LoadedModel, adapters: tuple[Adapter, ...]) -> LoadedModel:
    """The model with these adapters instead of those that it has; nothing is checked."""
    return replace(loaded, model_class=adapted_class(loaded.base_class, adapters), adapters=adapters)


def _unpickled(reference: str, overrides: tuple[tuple[str, str], ...] | None, fields: bytes) -> LoadedModel:
    if overrides is not None:
        load(reference, overrides=dict(overrides))
    return LoadedModel(*pickle.loads(fields))


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Transformers' log, its progress bars and Python warnings, which would be about default configs and twins."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(ERROR)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


LONGEST = 1000
"""Characters of the longest reference: of paths, and of names in them, systems take no more than a few times that."""

_Found: TypeAlias = tuple[PreTrainedConfig, type[PreTrainedModel], Path | None]


def _resolve(reference: str, overrides: Mapping[str, str], trusted: bool) -> _Found:
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


def build(loaded: LoadedModel, *, device: str = "meta", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build the model in evaluation mode; on `meta` its parameters have no data.

    Raises:
        LoadError: its constructor raises.
    """
    try:
        with quiet(), torch.device(device), NumbersStay():
            make: Callable[..., nn.Module] = loaded.model_class._from_config
            # A copy: `post_init` deletes an old `gradient_checkpointing` field, which the next model would need.
            model = make(deepcopy(loaded.config), dtype=dtype)
    except Exception as error:
        kind = loaded.model_class
        why = f"{reason(error)}{built_at(error, kind)}"
        advice = version_advice(error) + empty_fields(error, loaded.config, kind)
        raise LoadError(f"{loaded.name}: {kind.__name__} does not build from this config ({why}).{advice}") from error
    if device == "meta":
        _leave_no_data(model)
    return model.eval()


class NumbersStay(TorchFunctionMode):
    """A lone integer that a constructor puts into a tensor keeps its value on the meta device: code computes sizes from it."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("data")
        if func is torch.tensor and type(given) is int and "device" not in kwargs:
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def _leave_no_data(model: nn.Module) -> None:
    """Move tensors to `meta` that a constructor made on another device (`torch.FloatTensor(...)` ignores the default
    device).
    """
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                made = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved.setdefault(id(parameter), made)
