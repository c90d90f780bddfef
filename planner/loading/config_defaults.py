"""Defaults that do not build: some config classes leave a field empty, or unlike what their modeling code reads.

What is missing is found by asking: the fields that the constructor read before it failed and that are None, and the exception.
What it is filled with follows from the other fields, from the names of both, and from what the exception asks for. Only for a
config made of defaults alone: in somebody's own config.json such a field is their mistake, and they should hear of it.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import ALLOWED_LAYER_TYPES

from shardproof.planner.loading.config import parse_value
from shardproof.planner.loading.field_roles import Fields, role_of

_TOLD = ("kv heads", "head dim", "experts", "shared", "chosen", "intermediate")
"""Roles for which the other fields, or any small number, tell a value."""


def repaired(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedConfig:
    """A config of defaults alone, with what its class leaves empty and its model needs."""
    return with_fields(config, _missing(config, partial(_made, model_class), kind=model_class))


def empty_fields(
    error: Exception, config: PreTrainedConfig, model_class: type[PreTrainedModel], *, most: int = 4
) -> str:
    """Advice where a constructor computed with a field that the config leaves empty."""
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
    """Values, by dotted keys, for the fields that `build` needs; empty where it builds, or where nothing helps. `kind` is the
    model's class, whose source names the kinds of layers.
    """
    key = f"{kind.__qualname__} {config.to_json_string()}"
    if key not in _known:
        _known[key] = _found(config, build, kind)
    return _known[key]


def _found(config: PreTrainedConfig, build: Callable[[PreTrainedConfig], object], kind: type) -> Fields:
    filled: Fields = {}
    for _ in range(8):
        now = with_fields(config, filled)
        read, failure = _reads(deepcopy(now), build)
        if failure is None:
            return filled | _choice(now, read)
        found = next(
            (f for f in (*_fillings(now, read, kind), *_asked(now, failure)) if not f.items() <= filled.items()), None
        )
        if found is None:
            return {}
        filled |= found
    return {}


def with_fields(config: PreTrainedConfig, filled: Mapping[str, object]) -> PreTrainedConfig:
    """A copy of a config with fields of it, or of configs in it, set anew."""
    made = deepcopy(config)
    for key, value in filled.items():
        *path, name = key.split(".")
        owner: object = made
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, name, value)
    return made


def _reads(config: PreTrainedConfig, build: Callable[[PreTrainedConfig], object]) -> tuple[list[str], Exception | None]:
    """The empty fields that are read while building, last first, and what it raises."""
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
    except Exception as error:  # whatever the constructor raises: what it read before is what is asked
        return read[::-1], error
    return read[::-1], None


def _choice(config: PreTrainedConfig, read: list[str]) -> Fields:
    """What is not needed before the forward, and missing all the same: how many experts a token goes to, where there are
    experts; the default among several that are listed.
    """
    fields = config.to_dict()
    experts = any(role_of(name) == "experts" and type(value) is int for name, value in fields.items())
    chosen: Fields = {name: 2 for name in read if experts and role_of(name) == "chosen"}
    for name, value in fields.items():
        several = fields.get(f"{name.removeprefix('default_')}s")
        if value is None and name.startswith("default_") and isinstance(several, list | tuple) and several:
            chosen[name] = several[0]
    return chosen


def _asked(config: PreTrainedConfig, failure: Exception) -> Iterator[Fields]:
    """What an exception asks for: a field and its value in so many words, an attribute that another config has, or the
    rotary parameters of one kind of layer.
    """
    text = str(failure)
    fields = config.to_dict()
    for name, value in re.findall(r"`(\w+)\s*=\s*(\w+)`", text):
        if name in fields:
            yield {name: parse_value(value.lower() if value in ("True", "False") else value)}
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


def _fillings(config: PreTrainedConfig, read: list[str], kind: type) -> Iterator[Fields]:
    """Values for the field that was read last and that the others tell a value for."""
    by_role = {
        role: value for name, value in config.to_dict().items() if type(value) is int and (role := role_of(name))
    }
    for name in read:
        value = _kinds(config, kind) if name == "layer_types" else _value(role_of(name), by_role)
        if value is not None:
            yield {name: value}


def _kinds(config: PreTrainedConfig, kind: type) -> list[str] | None:
    """The kinds of layers that the modeling source names, in turns; full attention beside what it names."""
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
        case _:
            return None
