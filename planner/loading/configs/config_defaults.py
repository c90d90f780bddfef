"""Values for default configs that cannot be built: some config classes leave a field empty that their modeling code needs.

The missing fields are those that are None and that the constructor read before it failed, and those that its exception
names. Their values follow from the other fields and their names, and from the exception. Only a config made of defaults is
completed: in a user's config.json such a field is an error that the user should see.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import ALLOWED_LAYER_TYPES

from shardproof.planner.loading.configs.configure import parse_value
from shardproof.planner.loading.configs.field_roles import Fields, role_of

_PLACEHOLDER = re.compile(r"(image|video|audio)_token_(id|index)")
_VOCABULARY = 1024
"""The tokens of a default config that says no number."""
_ASKED = 8
"""A number that an exception asks for by the name of its field, such as the steps of a prediction."""
_TOLD = ("kv heads", "head dim", "experts", "shared", "chosen", "intermediate")
"""Roles of fields whose value follows from other fields, or can be any small number."""


def repaired(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedConfig:
    """A config made of defaults, with values for the fields that its class leaves empty and its model needs."""
    filled = with_fields(config, _missing(config, partial(_made, model_class), kind=model_class))
    _give_placeholders(filled)
    _fit_parts(filled)
    if not any(getattr(part, "rope_parameters", None) for part in parts_of(filled)):
        return filled
    try:
        return _fitting_sections(filled, _made(model_class, deepcopy(filled)))
    except Exception:  # what the constructor raises is said where the model is built
        return filled


def _give_placeholders(config: PreTrainedConfig) -> None:
    """The token that stands for an image, a video or audio: the last ones of the vocabulary, where a config leaves it empty."""
    vocabulary = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if not isinstance(vocabulary, int):
        return
    empty = [name for name, value in vars(config).items() if value is None and _PLACEHOLDER.fullmatch(name)]
    for at, name in enumerate(empty):
        setattr(config, name, vocabulary - 1 - at)


def _fit_parts(config: PreTrainedConfig) -> None:
    """A part hands on vectors as wide as the language model: the defaults of the two are written apart, and may differ.

    A width that is not the default was given, and stays.
    """
    text = config.get_text_config(decoder=True)
    width = getattr(text, "hidden_size", None)
    for part in parts_of(config) if text is not config and type(width) is int else ():
        given = getattr(part, "out_hidden_size", None)
        if part is not text and type(given) is int and given == getattr(type(part), "out_hidden_size", None):
            part.out_hidden_size = width


def sectioned(config: PreTrainedConfig, model: nn.Module) -> PreTrainedConfig:
    """A config that says the sections of its rotary frequencies (`mrope_section`), where only the code says them.

    Source: transformers 5.23.0, models/qwen2_vl/modeling_qwen2_vl.py, `rope_parameters.get("mrope_section", [16, 24, 24])`.
    """
    made = deepcopy(config)
    for kind, name, sections, _ in _sections(model):
        for part in parts_of(made):
            if type(part) is kind and isinstance(part.rope_parameters, dict):
                part.rope_parameters.setdefault(name, sections)
    return made


def _sections(model: nn.Module) -> Iterator[tuple[type, str, list[int], int]]:
    """The sections that a rotary embedding keeps: the class of its config, their name, their sizes, how many frequencies
    there are.
    """
    for module in model.modules():
        config, frequencies = getattr(module, "config", None), getattr(module, "inv_freq", None)
        if not isinstance(getattr(config, "rope_parameters", None), dict) or not isinstance(frequencies, torch.Tensor):
            continue
        for name, value in vars(module).items():
            if isinstance(value, list) and len(value) > 1 and all(type(size) is int for size in value):
                yield type(config), name, list(value), frequencies.numel()


def parts_of(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and the configs in it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from parts_of(value)


def _fitting_sections(config: PreTrainedConfig, model: object) -> PreTrainedConfig:
    """The config with sections that fill the frequencies, where those of the code do not fit the other defaults."""
    if not isinstance(model, nn.Module):
        return config
    for kind, name, sections, count in _sections(model):
        for part in parts_of(config):
            if type(part) is kind and isinstance(part.rope_parameters, dict) and name not in part.rope_parameters:
                total = sum(sections)
                if total != count and count >= len(sections):
                    small = [size * count // total for size in sections]
                    part.rope_parameters[name] = [small[0] + count - sum(small), *small[1:]]
    return config


def empty_fields(
    error: Exception, config: PreTrainedConfig, model_class: type[PreTrainedModel], *, most: int = 4
) -> str:
    """Advice for a constructor that failed on a field that the config leaves empty; names at most `most` fields."""
    if "NoneType" not in str(error):
        return ""
    read, _ = _reads(deepcopy(config), partial(_made, model_class))
    names = ", ".join(list(dict.fromkeys(read))[:most])
    return f" Of the fields that it read last, these are empty: {names}; give them with --set." if names else ""


def _made(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> object:
    with torch.device("meta"):
        return model_class._from_config(config)


_known: dict[str, Fields] = {}


def _missing(config: PreTrainedConfig, build: Callable[[PreTrainedConfig], object], *, kind: type) -> Fields:
    """Values, by dotted key, for the fields that `build` needs; empty if it succeeds, or if no value helps. `kind` is the
    model's class; its source names the kinds of layers.
    """
    key = f"{kind.__qualname__} {config.to_json_string()}"
    if key not in _known:
        _known[key] = _values_that_build(config, build, kind)
    return _known[key]


def _values_that_build(config: PreTrainedConfig, build: Callable[[PreTrainedConfig], object], kind: type) -> Fields:
    filled: Fields = {}
    for _ in range(8):
        now = with_fields(config, filled)
        read, failure = _reads(deepcopy(now), build)
        if failure is None:
            return filled | _choice(now, read)
        found = next(
            (
                f
                for f in (*_fillings(now, read, kind), *_values_asked_for(now, failure))
                if not f.items() <= filled.items()
            ),
            None,
        )
        if found is None:
            return {}
        filled |= found
    return {}


def with_fields(config: PreTrainedConfig, filled: Mapping[str, object]) -> PreTrainedConfig:
    """A copy of a config with these values; dotted keys reach into sub-configs."""
    made = deepcopy(config)
    for key, value in filled.items():
        *path, name = key.split(".")
        owner: object = made
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, name, value)
    return made


def _reads(config: PreTrainedConfig, build: Callable[[PreTrainedConfig], object]) -> tuple[list[str], Exception | None]:
    """The empty fields that are read while the model is built, the last first, and the exception, if any."""
    read: list[str] = []
    kind = type(config)

    def watched(self: PreTrainedConfig, name: str) -> Any:
        value = kind.__getattribute__(self, name)
        if value is None and not name.startswith("_"):
            read.append(name)
        return value

    config.__class__ = type(kind.__name__, (kind,), {"__getattribute__": watched, "__module__": kind.__module__})
    try:
        build(config)
    except Exception as error:  # any exception of the constructor: the fields that it read before are the answer
        return read[::-1], error
    return read[::-1], None


def _choice(config: PreTrainedConfig, read: list[str]) -> Fields:
    """Values for fields that only the forward needs: the number of experts per token, or the default among listed choices."""
    fields = config.to_dict()
    experts = any(role_of(name) == "experts" and type(value) is int for name, value in fields.items())
    chosen: Fields = {name: 2 for name in read if experts and role_of(name) == "chosen"}
    for name, value in fields.items():
        several = fields.get(f"{name.removeprefix('default_')}s")
        if value is None and name.startswith("default_") and isinstance(several, list | tuple) and several:
            chosen[name] = several[0]
    return chosen


def _values_asked_for(config: PreTrainedConfig, failure: Exception) -> Iterator[Fields]:
    """Values that an exception asks for: a field with its value, an attribute that another config has, or the rotary parameters
    of one kind of layer.
    """
    text = str(failure)
    fields = config.to_dict()
    for name, value in re.findall(r"`(\w+)\s*=\s*(\w+)`", text):
        if name in fields:
            yield {name: parse_value(value.lower() if value in ("True", "False") else value)}
    for name in re.findall(r"`(\w+)`", text):
        if name in fields and fields[name] is None:
            yield {name: _ASKED, **_derived(config, name)}
    if isinstance(failure, AttributeError) and (found := re.match(r"'(\w+)' object has no attribute '(\w+)'", text)):
        kind, name = found.groups()
        rotary = fields.get("rope_parameters")
        known = (rotary if isinstance(rotary, dict) else {}) | fields
        for part, inner in vars(config).items():
            if type(inner).__name__ == kind and known.get(name) is not None:
                yield {f"{part}.{name}": known[name]}
    kinds, rotary = fields.get("layer_types"), fields.get("rope_parameters")
    if (
        isinstance(failure, KeyError)
        and isinstance(kinds, list)
        and failure.args[0] in kinds
        and isinstance(rotary, dict)
    ):
        one = rotary or {"rope_type": "default", "rope_theta": config.default_theta}
        yield {"rope_parameters": {kind: dict(one) for kind in dict.fromkeys(kinds)}}


def _derived(config: PreTrainedConfig, name: str) -> Fields:
    """Empty fields that the class derives from this one, where it is given to the constructor."""
    make: Callable[..., PreTrainedConfig] = type(config)
    try:
        made = make(**{name: _ASKED}).to_dict()
    except Exception:  # the class wants another value
        return {}
    empty = [other for other, value in config.to_dict().items() if value is None and other != name]
    return {other: made[other] for other in empty if type(made.get(other)) is int}


def _fillings(config: PreTrainedConfig, read: list[str], kind: type) -> Iterator[Fields]:
    """Values for the field that was read last, where they follow from the other fields."""
    by_role = {
        role: value for name, value in config.to_dict().items() if type(value) is int and (role := role_of(name))
    }
    for name in read:
        value = _kinds(config, kind) if name == "layer_types" else _value(role_of(name), by_role)
        if value is not None:
            pads = role_of(name) == "vocabulary" and "pad_token_id" in read
            yield {name: value, **({"pad_token_id": 0} if pads else {})}


def _kinds(config: PreTrainedConfig, kind: type) -> list[str] | None:
    """A list of layer kinds, one per layer, that alternates between full attention and the kinds that the source names."""
    source, depth = inspect.getsource(inspect.getmodule(kind) or kind), getattr(config, "num_hidden_layers", None)
    named = [name for name in ALLOWED_LAYER_TYPES if f'"{name}"' in source]
    kinds = list(dict.fromkeys((*named, "full_attention")))
    return [kinds[layer % len(kinds)] for layer in range(depth)] if type(depth) is int else None


def _value(role: str | None, by_role: Mapping[str, int]) -> int | None:
    hidden, heads = by_role.get("hidden"), by_role.get("heads")
    match role:
        case "kv heads":
            return heads
        case "head dim" if hidden and heads:
            return hidden // heads
        case "experts":
            return 8
        case "chosen":
            return 2
        case "shared":
            return 1
        case "intermediate" if hidden:
            return 4 * hidden
        case "vocabulary":
            return _VOCABULARY
        case _:
            return None
