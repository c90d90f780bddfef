"""The number of layers of a twin, and which layers of the real model they are: every kind of layer is kept."""

import re
from collections.abc import Mapping

from shardproof.planner.loading.configs.field_roles import Fields


def depth(fields: Mapping[str, object], roles: Mapping[str, str], *, least: int) -> Fields:
    """A reduced number of layers that keeps every kind of layer, and all lists with one item per layer shortened accordingly.

    A model with fewer layers than `least` becomes deeper, unless a list describes each layer.
    """
    name = next((name for name, role in roles.items() if role == "layers"), None)
    if name is None or not isinstance(total := fields[name], int):
        return {}
    lists = {key: value for key, value in fields.items() if isinstance(value, list | tuple) and len(value) == total}
    counts = {key: value for key in _of_role("layers", roles) if isinstance(value := fields[key], int)}
    if total < least and not lists:
        return {key: max(value, least) for key, value in counts.items()}
    numbered = {key for key, value in lists.items() if list(value) == list(range(total))}
    own = {key: by_layer for key, value in fields.items() if (by_layer := _by_layer(value, total))}
    counted = {key: pairs for key, value in fields.items() if (pairs := _counted(value, total))}
    kinds = _kinds([value for key, value in lists.items() if key not in numbered], own, total)
    places = _handed_on(fields, total)
    least = max([least, *map(len, places.values())])
    kept = _kept_layers(kinds, total, _least(fields, roles, total, least, counted))
    cut: Fields = {key: [value[index] for index in kept] for key, value in lists.items()}
    cut |= {key: [[part, len(kept) // _length(pairs)] for part, _ in pairs] for key, pairs in counted.items()}
    cut |= {key: _renumbered(by_layer, kept) for key, by_layer in own.items()}
    cut |= {key: list(range(len(kept))) for key in numbered}
    cut |= _moved_places(fields, places, total, len(kept))
    cut |= {key: min(value, len(kept)) for key, value in counts.items()}
    cut |= _last_layers(fields, roles, len(kept), total)
    return cut | {name: len(kept)}


_OUT = re.compile(r"\w*out_(indices|features)")
_STAGE = re.compile(r"(\D*)(\d+)")


def _handed_on(fields: Mapping[str, object], total: int) -> dict[str, list[int]]:
    """The fields that name the layers whose output a backbone hands on: their numbers, and 0 for what is before the layers."""
    found = {key: _places(key, value, total) for key, value in fields.items()}
    return {key: [0, *places] for key, places in found.items() if places}


def _moved_places(fields: Mapping[str, object], places: Mapping[str, list[int]], total: int, kept: int) -> Fields:
    return {key: _moved(fields[key], found[1:], total, kept) for key, found in places.items()}


def _places(name: str, value: object, total: int) -> list[int]:
    """The layers whose output a backbone hands on, by number or as `stage12`; empty for any other field."""
    if not _OUT.fullmatch(name) or not isinstance(value, list | tuple):
        return []
    told = [_STAGE.fullmatch(str(one)) for one in value]
    found = [int(one[2]) for one in told if one is not None]
    return found if len(found) == len(value) and found == sorted(set(found)) and max(found, default=0) <= total else []


def _moved(value: object, places: list[int], total: int, kept: int) -> list[object]:
    """As many places, at the end of the layers that are kept, where the places reach the end of the layers."""
    end = min(max(places), kept - min(1, total - max(places)))
    now = range(end - len(places) + 1, end + 1)
    assert isinstance(value, list | tuple)
    return [
        f"{old.rstrip('0123456789')}{new}" if isinstance(old, str) else new for old, new in zip(value, now, strict=True)
    ]


def _last_layers(fields: Mapping[str, object], roles: Mapping[str, str], kept: int, total: int) -> Fields:
    """Counts of layers at the end of the stack, in proportion."""
    last = {key: value for key in _of_role("last layers", roles) if isinstance(value := fields[key], int)}
    return {key: value * kept // total for key, value in last.items()}


def _kinds(
    lists: list[list[object] | tuple[object, ...]], own: Mapping[str, Mapping[int, object]], total: int
) -> list[tuple[object, ...]]:
    """What the lists, and the mappings from layer numbers, say of each layer."""
    mapped = [[by_layer.get(index) for index in range(total)] for by_layer in own.values()]
    return list(zip(*lists, *mapped, strict=True))


def _of_role(wanted: str, roles: Mapping[str, str]) -> list[str]:
    return [key for key, role in roles.items() if role == wanted]


def _least(
    fields: Mapping[str, object],
    roles: Mapping[str, str],
    total: int,
    least: int,
    counted: Mapping[str, list[tuple[list[object], int]]],
) -> int:
    """The least number of layers that contains every repeating period once, and complete runs of counted layer kinds."""
    periods = (fields[key] for key in _of_role("period", roles))
    least = max([least, *(value for value in periods if isinstance(value, int) and value <= total)])
    for pairs in counted.values():
        least = -(-least // _length(pairs)) * _length(pairs)
    return least


def _renumbered(by_layer: Mapping[int, object], kept: list[int]) -> dict[str, object]:
    return {str(new): by_layer[old] for new, old in enumerate(kept) if old in by_layer}


def _counted(value: object, total: int) -> list[tuple[list[object], int]]:
    """Pairs (layer kinds, repetitions) if such pairs describe all layers; else an empty list."""
    pairs: list[tuple[list[object], int]] = []
    for pair in value if isinstance(value, list) else ():
        match pair:
            case [[*part], int(count)]:
                pairs.append((part, count))
            case _:
                return []
    return pairs if sum(len(part) * count for part, count in pairs) == total else []


def _length(pairs: list[tuple[list[object], int]]) -> int:
    return sum(len(part) for part, _ in pairs)


def _by_layer(value: object, total: int) -> dict[int, object]:
    """A mapping with layer numbers as keys, with integer keys; empty for any other value."""
    if not isinstance(value, dict) or not all(str(key).isdecimal() and int(key) < total for key in value):
        return {}
    return {int(key): own for key, own in value.items()}


def _kept_layers(kinds: list[tuple[object, ...]], total: int, least: int) -> list[int]:
    """The first layer of each kind, plus the next layers up to `least`."""
    first = {repr(kind): index for index, kind in reversed(list(enumerate(kinds)))}
    kept = set(first.values())
    rest = (index for index in range(total) if index not in kept)
    kept |= {index for index, _ in zip(rest, range(least - len(kept)), strict=False)}
    return sorted(kept)
