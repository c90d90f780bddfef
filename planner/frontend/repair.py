"""Defaults that do not build: some config classes leave a field empty that their modeling code needs.

What is missing is found by asking: the fields that the constructor read before it failed and that are None. What it is filled
with follows from the other fields, by what the names of both say. Only for a config made of defaults alone: in somebody's own
config.json an empty field is their mistake, and they should hear of it.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from transformers import PreTrainedConfig

from planner.frontend.sizes import Fields, role_of

_TOLD = ("kv heads", "head dim", "experts", "shared", "chosen", "intermediate")
"""Roles for which the other fields, or any small number, tell a value."""


def missing(config: PreTrainedConfig, build: Callable[[PreTrainedConfig], object]) -> Fields:
    """Values for the empty fields that `build` needs; empty where it builds, or where nothing helps."""
    filled: Fields = {}
    if not any(value is None and role_of(name) in _TOLD for name, value in config.to_dict().items()):
        return filled
    for _ in range(8):
        read, built = _reads(_with(config, filled), build)
        if built:
            return filled | _choice(_with(config, filled), read)
        found = next(_fillings(_with(config, filled), read), None)
        if found is None:
            return {}
        filled |= found
    return {}


def _with(config: PreTrainedConfig, filled: Mapping[str, object]) -> PreTrainedConfig:
    made = deepcopy(config)
    for name, value in filled.items():
        setattr(made, name, value)
    return made


def _reads(config: PreTrainedConfig, build: Callable[[PreTrainedConfig], object]) -> tuple[list[str], bool]:
    """The empty fields that are read while building, last first, and whether it builds."""
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
    except Exception:  # whatever the constructor raises: what it read before is what is asked
        return read[::-1], False
    return read[::-1], True


def _choice(config: PreTrainedConfig, read: list[str]) -> Fields:
    """How many experts a token goes to is not needed before the forward: where there are experts, it is missing all the same."""
    experts = any(role_of(name) == "experts" and type(value) is int for name, value in config.to_dict().items())
    return {name: 2 for name in read if experts and role_of(name) == "chosen"}


def _fillings(config: PreTrainedConfig, read: list[str]) -> Iterator[Fields]:
    """Values for the field that was read last and that the others tell a value for."""
    by_role = {
        role: value for name, value in config.to_dict().items() if type(value) is int and (role := role_of(name))
    }
    for name in read:
        value = _value(role_of(name), by_role)
        if value is not None:
            yield {name: value}


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
