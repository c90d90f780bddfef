"""The model class for a config: the one that `architectures` names, else the one that generates text, else the base model."""

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import transformers
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
    PreTrainedModel,
)

from shardproof.planner.ir.errors import LoadError, innermost
from shardproof.planner.loading.custom_code import config_class_of

Pair: TypeAlias = tuple[PreTrainedConfig, type[PreTrainedModel]]


def paired(config: PreTrainedConfig, fields: Mapping[str, object], *, name: str) -> Pair:
    """The config with its class: the one that `architectures` names, else the one that generates text, else the base model."""
    whole = [AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq]
    generates: list[Any] = [AutoModelForCausalLM, *whole, AutoModelForImageTextToText, AutoModel]
    if getattr(config, "is_encoder_decoder", False):  # its causal language model is the decoder alone
        generates.sort(key=lambda auto: auto not in whole)
    model_class = (
        architecture(fields) or _mapped(type(config), generates) or _class_with_config(type(config), name=name)
    )
    if not runs_forward(model_class):
        parts = parts_with_types(config)
        told = f"give one of its parts: {', '.join(parts)}" if parts else "give the class of a part that has one"
        raise LoadError(f"{name}: {model_class.__name__} has no forward; {told}.")
    wanted = config_class_of(model_class)
    if not isinstance(config, wanted):
        text = config.get_text_config(decoder=True)
        config = text if isinstance(text, wanted) else config
    return config, model_class


def _mapped(config_class: type[PreTrainedConfig], autos: Sequence[Any]) -> type[PreTrainedModel] | None:
    for auto in autos:
        try:
            entry: object = auto._model_mapping.get(config_class, None)
        except (ImportError, ValueError) as error:  # the mapping names a class that is not installed
            if isinstance(innermost(error), ImportError | ValueError):
                continue
            raise  # a package that the class needs is there, and broken
        found = entry[0] if isinstance(entry, tuple | list) else entry
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    return None


def _class_with_config(config_class: type[PreTrainedConfig], *, name: str) -> type[PreTrainedModel]:
    """The model class for a config that no auto class knows, such as that of a vision tower: one with this config class.

    Among several, the one named like the config (`XConfig`, `XModel`), or the only one for a task (`XForTask`).

    Raises:
        LoadError: neither rule leaves one class; names them.
    """
    found = {one.__name__: one for one in _beside(config_class)}
    stem = config_class.__name__.removesuffix("Config")
    for named in ({f"{stem}Model", stem}, {each for each in found if each.startswith(f"{stem}For")}, set(found)):
        if len(fitting := named & set(found)) == 1:
            return found[fitting.pop()]
    choice = " or ".join(f"{one.__module__}:{one.__name__}" for one in found.values())
    if not choice and (holders := _holders(config_class)):
        raise LoadError(
            f"{name}: {config_class.__name__} describes a part that no model class is made of alone; "
            f"give {' or '.join(holders)}, which contains it."
        )
    kinds = [one.model_type for one in config_class.sub_configs.values() if getattr(one, "model_type", "")]
    if not choice and kinds:
        raise LoadError(
            f"{name}: no class that is made of all of it has a forward; give one of its parts: {', '.join(kinds)}."
        )
    raise LoadError(
        f"{name}: the auto classes know no {config_class.__name__}; give {choice or 'package.module:Class'}."
    )


def _beside(config_class: type[PreTrainedConfig]) -> Iterator[type[PreTrainedModel]]:
    """The model classes with a forward in the modeling files of a configuration file's folder that take its config."""
    package, _, own = config_class.__module__.rpartition(".")
    first = own.replace("configuration_", "modeling_")
    folder = Path(inspect.getfile(config_class)).parent
    names = dict.fromkeys([first, *sorted(file.stem for file in folder.glob("modeling_*.py"))])
    for where in (f"{package}.{name}" if package else name for name in names):
        try:
            module = importlib.import_module(where)
        except ImportError:
            continue
        for one in vars(module).values():
            is_model = isinstance(one, type) and issubclass(one, PreTrainedModel) and one.__module__ == where
            if is_model and _takes(one, config_class) and runs_forward(one):
                yield one


def _takes(model_class: type[PreTrainedModel], config_class: type[PreTrainedConfig]) -> bool:
    """Whether a class of models is made from this config: its own, or the one that its constructor names."""
    if model_class.config_class is config_class:
        return "forward" in vars(model_class)
    config = inspect.signature(model_class.__init__).parameters.get("config")
    return config is not None and config.annotation in (config_class, config_class.__name__)


def runs_forward(model_class: type[PreTrainedModel]) -> bool:
    """Whether models of this class have a forward; some only generate, or encode and decode."""
    return model_class.forward is not nn.Module.forward


def parts_with_types(config: PreTrainedConfig) -> list[str]:
    """The model types of the parts of a model."""
    parts = (getattr(config, name, None) for name in config.sub_configs)
    return [part.model_type for part in parts if isinstance(part, PreTrainedConfig) and part.model_type]


def _holders(config_class: type[PreTrainedConfig]) -> list[str]:
    """The model types, of the same configuration file, of which this config describes a part."""
    module = sys.modules[config_class.__module__]
    beside = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, PreTrainedConfig)]
    return [one.model_type for one in beside if config_class in one.sub_configs.values() and one.model_type]


def architecture(fields: Mapping[str, object]) -> type[PreTrainedModel] | None:
    """The class that `architectures` names, if Transformers has it.

    Raises:
        LoadError: `architectures` is no list of names, or names a class that runs nothing; or `auto_map` is no object.
    """
    code = fields.get("auto_map")
    if code is not None and not isinstance(code, Mapping):
        raise LoadError(f"auto_map is {str(code)[:80]}, and no object of class names; correct it in the config.")
    names = fields.get("architectures")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise LoadError(f"architectures is {str(names)[:80]}, and not a list of class names; correct it in the config.")
    for name in names:
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            if found.forward is nn.Module.forward:
                raise LoadError(
                    f"architectures names {name}, which has no forward; name the class of the model that is run."
                )
            return found
    return None
