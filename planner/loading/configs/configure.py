"""A config from its class, the fields of a config.json, and `--set key=value` overrides."""

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from transformers import PreTrainedConfig

from shardproof.planner.ir.errors import LoadError, reason
from shardproof.planner.ir.readable_text import nearest

Fields: TypeAlias = dict[str, object]


def configure(
    config_class: type[PreTrainedConfig], fields: Mapping[str, object], overrides: Mapping[str, str], *, name: str
) -> PreTrainedConfig:
    """The config, constructed with the overrides, so that fields derived from others follow.

    Raises:
        LoadError: the config has no such key (the message names the nearest one), or refuses the value.
    """
    if not overrides:
        return _made(config_class, fields, name=name)
    default = _default(config_class, fields)
    merged: Fields = dict(fields)
    for key, text in overrides.items():
        _put(
            merged,
            key.split("."),
            parse_value(text),
            default if default is not None else config_class,
            key=key,
            name=name,
        )
    _follow_depth(merged, overrides)
    return _made(config_class, merged, name=name)


def parse_value(text: str) -> object:
    """The value of an override: parsed as JSON if it is valid JSON, else the text itself."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


def _made(config_class: type[PreTrainedConfig], fields: Mapping[str, object], *, name: str) -> PreTrainedConfig:
    try:
        return config_class.from_dict(dict(fields)) if fields else config_class()
    except Exception as error:
        advice = "Correct these fields in its config or with --set."
        raise LoadError(f"{name}: {config_class.__name__} refuses its fields ({reason(error)}). {advice}") from error


def _default(config_class: type[PreTrainedConfig], fields: Mapping[str, object]) -> PreTrainedConfig | None:
    """The config without overrides, used for its field names; None if it cannot be built without them."""
    try:
        return config_class.from_dict(dict(fields)) if fields else config_class()
    except Exception:
        return None


def _put(
    fields: Fields,
    path: list[str],
    value: object,
    owner: PreTrainedConfig | type[PreTrainedConfig],
    *,
    key: str,
    name: str,
) -> None:
    """Set one dotted key in nested fields; `owner` is the config that the fields belong to."""
    head, *rest = path
    known = field_names(owner)
    if head not in known and not _code_reads(owner, head):
        raise LoadError(f"{name}: --set {key} names no field of {_kind(owner)}.{nearest(head, known)}")
    if not rest:
        if head.startswith("num_") and isinstance(value, int) and value < 0:
            raise LoadError(f"{name}: --set {key}={value} is no count; give a number from 0 up.")
        fields[head] = value
        return
    inner = getattr(owner, head, None)
    if isinstance(inner, PreTrainedConfig):
        _put(_subtree(fields, head, {}), rest, value, inner, key=key, name=name)
    elif isinstance(inner, dict):
        _put_inside(_subtree(fields, head, inner), rest, value)
    else:
        raise LoadError(
            f"{name}: --set {key} goes into {head!r}, which is no sub-config and no mapping of {_kind(owner)}."
        )


def _code_reads(owner: PreTrainedConfig | type[PreTrainedConfig], name: str) -> bool:
    """Whether modeling code beside the config class reads a field that the class does not declare (`getattr(config, "head_dim",
    None)`): a config.json may hold it.
    """
    config_class = owner if isinstance(owner, type) else type(owner)
    try:
        home = Path(inspect.getfile(config_class))
    except (TypeError, OSError):  # a class without a file
        return False
    read = re.compile(
        rf"""\bconfig\s*\.\s*{re.escape(name)}\b|getattr\(\s*(?:\w+\.)*config\s*,\s*["']{re.escape(name)}["']"""
    )
    with suppress(OSError, UnicodeDecodeError):
        return any(read.search(file.read_text("utf-8")) for file in {home, *home.parent.glob("modeling*.py")})
    return False


def _put_inside(fields: Fields, path: list[str], value: object) -> None:
    """Set one key in a plain mapping such as `rope_parameters`, whose keys no class lists."""
    head, *rest = path
    if rest:
        _put_inside(_subtree(fields, head, {}), rest, value)
    else:
        fields[head] = value


def _subtree(fields: Fields, key: str, default: Mapping[str, object]) -> Fields:
    have = fields.get(key)
    tree: Fields = dict(have) if isinstance(have, Mapping) else dict(default)
    fields[key] = tree
    return tree


def field_names(owner: PreTrainedConfig | type[PreTrainedConfig]) -> set[str]:
    """Every name that can be set: attributes, their aliases, dataclass fields, and constructor arguments."""
    config_class = owner if isinstance(owner, type) else type(owner)
    names = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    names |= set(inspect.signature(config_class.__init__).parameters) - {"self", "args", "kwargs"}
    names |= {"attn_implementation", "base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan"}
    if isinstance(owner, PreTrainedConfig):
        names |= set(vars(owner))
    return {name for name in names if not name.startswith("_")}


def _follow_depth(fields: Fields, overrides: Mapping[str, str]) -> None:
    """Shorten lists with one item per layer, such as `layer_types` in a config.json, to the number of layers in the
    overrides.
    """
    depth, kinds = fields.get("num_hidden_layers"), fields.get("layer_types")
    asked = "num_hidden_layers" in overrides and "layer_types" not in overrides
    if asked and isinstance(depth, int) and isinstance(kinds, list) and depth < len(kinds):
        fields["layer_types"] = kinds[:depth]


def _kind(owner: PreTrainedConfig | type[PreTrainedConfig]) -> str:
    return owner.__name__ if isinstance(owner, type) else type(owner).__name__
