"""Small sizes for the fields of a config, by the roles of their names; there is no table per model type.

Every structural dim gets a different size, so that two dims cannot be confused. A size has the same common divisors with
the degree as the real size, so that a size that does not divide in the real model does not divide in the twin either.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from math import gcd
from typing import Any, TypeGuard

from shardproof.planner.loading.configs.field_roles import Fields, role_of
from shardproof.planner.twins.depth import depth

_DROPPED = re.compile(r"\w*(drop|jitter)\w*")
_MULTIPLIER = re.compile(r"\w*(multiplier|logits?_scal(e|ing)|residual_scale|embed(ding)?_scale|scaling_factor)")
_TOKEN = re.compile(r"\w*token_(ids?|index)")
_GRID = re.compile(r"\w*pos(ition)?_shape")
"""Fields with the shape of a grid of positions."""
_INNER = re.compile(r"(\w+?)_(?:n|num)_heads")
HEAD_DIM = 8
LENGTH = 12
"""Tokens in a twin's input: more than its sliding window, fewer than its positions."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One attempt to shrink a config. `apart`: equal real sizes get different small ones. `scaled`: multipliers of 1.0
    become other than 1. `counted`: the real numbers of heads are kept, which some code divides by a constant, and windows stay
    even."""

    apart: bool
    scaled: bool
    counted: bool = False


RUNGS = (
    Rung(True, True),
    Rung(True, False),
    Rung(False, True),
    Rung(False, False),
    Rung(False, True, True),
    Rung(False, False, True),
)
"""Tried in this order. Some models require two fields to be equal, and build only if equal sizes stay equal."""


@dataclass(slots=True)
class _Picker:
    """Chooses sizes, each at most once (unless equal real sizes have to stay equal)."""

    tp: int
    apart: bool
    used: set[int] = field(default_factory=set)
    given: dict[tuple[str, int], int] = field(default_factory=dict)

    def size(self, role: str, *, real: int, least: int, step: int = 1) -> int:
        """A size of at least `least` with the same divisibility as `real`."""
        if not self.apart and (role, real) in self.given:
            return self.given[role, real]
        size = fit(least, real=real, tp=self.tp, step=step, taken=self.used)
        self.used.add(size)
        self.given[role, real] = size
        return size


def fit(least: int, *, real: int, tp: int, step: int = 1, taken: Iterable[int] = ()) -> int:
    """The smallest multiple of `step`, at least `least`, that is not taken and has the same common divisor with `tp` as
    `real`.
    """
    start = -(-least // step) * step
    free = [n for n in range(start, start + step * (4 * tp + 32), step) if n not in set(taken)]
    return next((n for n in free if gcd(n, tp) == gcd(real, tp)), free[0])


def heads(real: int, real_kv: int | None, *, tp: int) -> tuple[int, int]:
    """Small numbers of query and KV heads: the ratio is kept up to 8, there are at least 2 KV heads (1 stays 1), and more query
    heads than ranks.
    """
    if real_kv == 1:
        return fit(tp + 1, real=real, tp=tp), 1
    kv = fit(max(2, min(tp + 1, real_kv or real)), real=real_kv or real, tp=tp, taken=(tp,))
    ratio = real // (real_kv or real)
    ratios = [ratio] if ratio <= 8 else [*range(2, 9), ratio]
    count = next((kv * r for r in ratios if gcd(kv * r, tp) == gcd(real, tp)), kv * ratio)
    return count, kv


def shrunk(fields: Mapping[str, object], *, tp: int, least_layers: int, rung: Rung) -> Fields:
    """The fields with small sizes; fields whose names have no role stay."""
    numbers = {name: value for name, value in fields.items() if type(value) is int and value > 0}
    roles = {name: role for name in numbers if (role := role_of(name))}
    small: Fields = dict(fields)
    small |= _head_sizes(numbers, roles, tp=tp, rung=rung, least=_least_head(fields, roles))
    small |= _counts(numbers, roles, even=rung.counted)
    small |= depth(small, roles, least=least_layers)
    small |= _rotary(fields, small, roles)
    small |= {
        name: shrunk(part, tp=tp, least_layers=least_layers, rung=rung)
        for name, part in fields.items()
        if is_config(part)
    }
    small |= numbers_beside_sizes(small, scaled=rung.scaled)
    small |= _inner_heads(numbers, small, tp=tp)
    return small | _scaled_lists(fields, small, roles) | _scaled_overrides(fields, small)


def is_config(part: object) -> TypeGuard[Fields]:
    """Whether a field's value is a nested config (a text or a vision part), as a mapping."""
    return isinstance(part, dict) and "model_type" in part


def _rotary(fields: Mapping[str, object], small: Mapping[str, object], roles: Mapping[str, str]) -> Fields:
    """The size of the rotary part of a head: the same share of the head, rounded to an even number."""
    name = next((name for name, role in roles.items() if role == "head dim"), None)
    real, now = _head_dim(fields, name), _head_dim(small, name)
    return {
        field: max(2, value * now // real // 2 * 2)
        for field, value in fields.items()
        if roles.get(field) == "rotary" and isinstance(value, int) and real and now
    }


_WIDTHS = ("heads", "kv heads", "hidden", "intermediate", None)
"""Roles of sizes that scale with a model's width; a size whose name has no role counts as one."""


def narrowed(fields: Mapping[str, object], *, tp: int, least_layers: int, factor: int) -> Fields:
    """The fields with every width divided by one factor, so that the relations between widths still hold.

    A size stays if the factor does not divide it, or if the quotient is no longer divisible by the degree.
    """
    numbers = {name: value for name, value in fields.items() if type(value) is int and value > 0}
    roles = {name: role for name in numbers if (role := role_of(name))}
    small: Fields = dict(fields)
    for name, value in numbers.items():
        role = roles.get(name)
        wide = role in _WIDTHS and not _TOKEN.fullmatch(name) and (role is not None or value >= 64)
        if wide and value % factor == 0 and gcd(value // factor, tp) == gcd(value, tp):
            small[name] = value // factor
        elif role == "vocabulary":
            small[name] = fit(min(100, value), real=value, tp=tp)
    small |= _counts(numbers, roles)
    small |= _shared_widths(fields, small, factor=factor)
    small |= depth(small, roles, least=least_layers)
    small |= {
        name: narrowed(part, tp=tp, least_layers=least_layers, factor=factor)
        for name, part in fields.items()
        if is_config(part)
    }
    return small | numbers_beside_sizes(small, scaled=True)


def _shared_widths(fields: Mapping[str, object], small: Mapping[str, object], *, factor: int) -> Fields:
    """Lists of widths whose sum is a width that was divided: each item is divided too."""
    made = {value for name, value in fields.items() if type(value) is int and small[name] != value}
    return {
        name: [part // factor for part in value]
        for name, value in fields.items()
        if isinstance(value, list)
        and all(type(part) is int and part % factor == 0 for part in value)
        and sum(value) in made
    }


def _least_head(fields: Mapping[str, object], roles: Mapping[str, str]) -> int:
    """The least head dim: each section of the rotary frequencies keeps one."""
    rope = fields.get("rope_parameters")
    real = _head_dim(fields, next((name for name, role in roles.items() if role == "head dim"), None))
    least = HEAD_DIM
    for value in rope.values() if isinstance(rope, dict) else ():
        if isinstance(value, list) and value and all(type(size) is int for size in value) and 0 < sum(value) <= real:
            while len(value) > sum(value) * least // real:
                least *= 2
    return least


def _head_sizes(
    numbers: Mapping[str, int], roles: Mapping[str, str], *, tp: int, rung: Rung, least: int = HEAD_DIM
) -> Fields:
    """Heads, head dims, hidden and intermediate sizes, ranks, vocabulary."""
    named: Callable[[str], list[str]] = lambda role: [name for name in numbers if roles.get(name) == role]  # noqa: E731
    picker = _Picker(tp, rung.apart)
    small: Fields = {}
    head_names, kv_names = named("heads"), named("kv heads")
    real_kv = numbers[kv_names[0]] if kv_names else None
    count = 1
    if head_names:
        count, kv = numbers[head_names[0]], real_kv or 0
        if not rung.counted:
            count, kv = heads(count, real_kv, tp=tp)
        small |= dict.fromkeys(head_names, count) | dict.fromkeys(kv_names, kv)
    for name in named("head dim"):
        small[name] = picker.size("head dim", real=numbers[name], least=least, step=2)
    tied = not named("head dim") or not rung.apart
    for name in named("hidden"):
        width = count * (least if tied else least + 2)
        small[name] = picker.size("hidden", real=numbers[name], least=width, step=2 * count)
    for role, fewest in (("intermediate", 44), ("rank", 20)):
        for name in named(role):
            small[name] = picker.size(role, real=numbers[name], least=min(fewest, numbers[name]), step=1)
    vocabularies = dict.fromkeys(numbers[name] for name in named("vocabulary"))  # equal ones are one vocabulary
    sizes = {real: picker.size("vocabulary", real=real, least=min(100, real)) for real in vocabularies}
    return small | {name: sizes[numbers[name]] for name in named("vocabulary")}


def _inner_heads(numbers: Mapping[str, int], small: Mapping[str, object], *, tp: int) -> Fields:
    """Heads and head dims of a state-space mixer, small, with their product equal to the mixer's inner width."""
    hidden = next((name for name in numbers if role_of(name) == "hidden"), "")
    narrow, found = small.get(hidden), Fields()
    for name, count in numbers.items():
        part = _INNER.fullmatch(name)
        times = numbers.get(f"{part[1]}_expand", 0) if part else 0
        dim = (
            next((f"{part[1]}_{word}" for word in ("d_head", "head_dim") if f"{part[1]}_{word}" in numbers), "")
            if part
            else ""
        )
        if dim and isinstance(narrow, int) and times * numbers[hidden] == count * numbers[dim]:
            width = times * narrow
            fits = [n for n in range(2, width) if width % n == 0 and n > tp and gcd(n, tp) == gcd(count, tp)]
            found |= {name: fits[0], dim: width // fits[0]} if fits else {}
    return found


def _counts(numbers: Mapping[str, int], roles: Mapping[str, str], *, even: bool = False) -> Fields:
    """Small numbers of experts, expert groups, windows and positions, with the same structure.

    A window of an image stays: it is counted in pixels or patches, whose sizes stay too. With `even`, a window can be halved,
    which code does that looks to both sides.
    """
    window = 4 if even else 5
    limits = {"experts": 8, "chosen": 2, "groups": 2, "chosen groups": 1, "window": window, "dense layers": 1}
    return {
        name: min(value, limits[role])
        for name, value in numbers.items()
        if (role := roles.get(name)) in limits and role and not (role == "window" and "patch_size" in numbers)
    }


def numbers_beside_sizes(fields: Mapping[str, object], *, scaled: bool) -> Fields:
    """No dropout, token ids inside the vocabulary, and multipliers of 1.0 changed so that a lost one shows.

    The vocabulary of a config without one of its own is that of its text part.
    """
    vocabulary = _vocabulary(fields)
    small: Fields = {}
    for name, value in fields.items():
        if isinstance(value, float) and _DROPPED.fullmatch(name):
            small[name] = 0.0
        elif scaled and value == 1.0 and isinstance(value, float) and _MULTIPLIER.fullmatch(name):
            small[name] = 1.25
        elif vocabulary and _TOKEN.fullmatch(name):
            small[name] = _inside(value, vocabulary)
        elif _GRID.fullmatch(name) and isinstance(value, list | tuple) and len(value) == 2:
            small[name] = [LENGTH // 4, 4]
    return small


def _vocabulary(fields: Mapping[str, object]) -> int | None:
    own = next((v for k, v in fields.items() if role_of(k) == "vocabulary" and isinstance(v, int)), None)
    parts = sorted((name != "text_config", name) for name, part in fields.items() if is_config(part))
    inner = (fields[name] for _, name in parts)
    return own or next((found for part in inner if isinstance(part, dict) and (found := _vocabulary(part))), None)


def _scaled_overrides(fields: Mapping[str, object], small: Mapping[str, object]) -> Fields:
    """Sizes of single layers, with their ratio to the common size kept."""
    found: Fields = {}
    for name, value in small.items():
        if isinstance(value, dict) and value and all(str(key).isdecimal() for key in value):
            layers = {key: own for key, own in value.items() if isinstance(own, dict)}
            found[name] = {key: _scaled_layer(own, fields, small) for key, own in layers.items()}
    return found


def _scaled_layer(own: Fields, fields: Mapping[str, object], small: Mapping[str, object]) -> Fields:
    """The sizes of one layer; a head dim that is the difference of two others stays the difference."""
    scaled = {field: _in_ratio(size, fields.get(field), small.get(field)) for field, size in own.items()}
    real, now = _head_dims({**fields, **own}), _head_dims({**small, **scaled})
    for rest, whole, part in permutations(real, 3):
        if rest in own and real[rest] + real[part] == real[whole] and now[whole] > now[part]:
            scaled[rest] = now[whole] - now[part]
    return scaled


def _head_dims(fields: Mapping[str, object]) -> dict[str, int]:
    return {name: size for name, size in fields.items() if role_of(name) == "head dim" and isinstance(size, int)}


def _in_ratio(size: object, real: object, small: object) -> object:
    if isinstance(size, bool) or not (isinstance(size, int) and isinstance(real, int) and isinstance(small, int)):
        return size
    return max(1, size * small // real) if real else size


def _inside(token: object, vocabulary: int) -> object:
    if isinstance(token, list):
        return [_inside(one, vocabulary) for one in token]
    return token % vocabulary if isinstance(token, int) and token >= vocabulary else token


def _scaled_lists(fields: Mapping[str, object], small: Mapping[str, object], roles: Mapping[str, str]) -> Fields:
    """Lists of rope factors, one per frequency, shortened with the head dim."""
    name = next((name for name, role in roles.items() if role == "head dim"), None)
    real, now = _head_dim(fields, name), _head_dim(small, name)
    rope = fields.get("rope_parameters")
    if not (isinstance(rope, dict) and real and now):
        return {}
    cut = {k: _shared_out(v, now, real) for k, v in rope.items() if isinstance(v, list)}
    return {"rope_parameters": rope | cut} if cut else {}


def _shared_out(values: list[Any], now: int, real: int) -> list[Any]:
    """The list for a head dim of `now` instead of `real`: a list with one factor per frequency is shortened; sizes of
    sections of the frequencies (integers) are scaled down.
    """
    if not all(type(value) is int for value in values) or sum(values) > real:
        return values[: max(1, len(values) * now // real)]
    total = max(len(values), sum(values) * now // real)
    small = [max(1, value * now // real) for value in values]
    return [small[0] + total - sum(small), *small[1:]]


def _head_dim(fields: Mapping[str, object], name: str | None) -> int:
    if name is not None:
        value = fields[name]
        return value if isinstance(value, int) else 0
    by_role = {role_of(key): value for key, value in fields.items() if isinstance(value, int)}
    hidden, count = by_role.get("hidden"), by_role.get("heads")
    return hidden // count if hidden and count else 0
