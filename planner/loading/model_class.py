"""The model class for a config: the one that `architectures` names, else the one that generates text, else the base model."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
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
    model_class = architecture(fields) or _mapped(type(config), generates) or _own(type(config), name=name)
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


def _own(config_class: type[PreTrainedConfig], *, name: str) -> type[PreTrainedModel]:
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
    raise LoadError(
        f"{name}: the auto classes know no {config_class.__name__}; give {choice or 'package.module:Class'}."
    )


def _beside(config_class: type[PreTrainedConfig]) -> Iterator[type[PreTrainedModel]]:
    """The model classes with a forward of their own in the modeling file next to a configuration file."""
    where = config_class.__module__.replace(".configuration_", ".modeling_")
    try:
        module = importlib.import_module(where)
    except ImportError:
        return
    for one in vars(module).values():
        is_model = isinstance(one, type) and issubclass(one, PreTrainedModel) and one.__module__ == where
        if is_model and one.config_class is config_class and "forward" in vars(one):
            yield one


def architecture(fields: Mapping[str, object]) -> type[PreTrainedModel] | None:
    """The class that `architectures` names, if Transformers has it.

    Raises:
        LoadError: `architectures` is no list of names, or names a class that runs nothing.
    """
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
