"""Small sizes for a module that is no Transformers model: fewer layers and heads, narrower heads, and what follows from them.

Its fields are the arguments of a constructor. Most of them are sizes that need not shrink: the width of another model's vectors,
the channels of latents, the side of a patch. What shrinks is what makes a model large: the number of layers (as long as the model
on the meta device keeps every kind of parameter), the heads, their width, and the fields that are equal to the product of both or
a multiple of it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from typing import TypeAlias

from shardproof.planner.loading.configs.field_roles import Fields, role_of
from shardproof.planner.twins.sizes import fit

Kinds: TypeAlias = Callable[[Fields], frozenset[tuple[str, int]]]

_DEPTH = re.compile(r"\w*(layers|blocks|depths?)\w*")
_DROPPED = re.compile(r"\w*drop\w*")
WIDTHS = (16, 24, 32, 64, 128)
"""Widths of a head, tried in this order: sections of rotary frequencies and groups of norms need some."""
_MULTIPLES = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True, slots=True)
class _Heads:
    """A pair of fields: how many heads, and the width of one; `width` is empty where the code derives it from the hidden size."""

    count: str
    width: str


def small_modules(fields: Fields, *, tp: int, least: int, kinds: Kinds) -> Iterator[Fields]:
    """Fields with small sizes, the smallest first.

    Args:
        fields: those of the model.
        tp: the number of ranks; a number of heads divides by what it divided by.
        least: the fewest layers of a stack.
        kinds: the kinds of parameters of a model with some fields; none where it cannot be built.
    """
    few = {**fields, **{name: 0.0 for name, value in fields.items() if _dropout(name, value)}}
    few |= shallow(few, least=least, kinds=kinds)
    for width in WIDTHS:
        if (narrow := _narrow(few, width, tp=tp)) != few:
            yield narrow
    yield few


def _dropout(name: str, value: object) -> bool:
    return isinstance(value, float) and _DROPPED.fullmatch(name) is not None


def shallow(fields: Fields, *, least: int, kinds: Kinds) -> Fields:
    """Fields with fewer layers (`least` or a few more), as long as every kind of parameter is still there."""
    wanted, found = kinds(fields), Fields()
    for name, value in fields.items():
        if not _DEPTH.fullmatch(name):
            continue
        for count in (least, least + 1, least + 2, 2 * least + 2):
            fewer = _fewer(value, count)
            if fewer is not None and kinds({**fields, **found, name: fewer}) == wanted:
                found[name] = fewer
                break
    return found


def _fewer(value: object, count: int) -> object:
    if type(value) is int and value > count:
        return count
    if isinstance(value, list | tuple) and len(value) > 1 and all(type(one) is int and one > count for one in value):
        return [count] * len(value)
    return None


def _narrow(fields: Fields, width: int, *, tp: int) -> Fields:
    """Few heads of this width, and every field that the code takes to be their product."""
    numbers = {name: value for name, value in fields.items() if type(value) is int and value > 1}
    pairs = _pairs(numbers)
    small: Fields = {}
    products: dict[int, int] = {}
    for pair in pairs:
        real_width = _real_width(pair, numbers)
        if not real_width or real_width < width:
            continue
        count = fit(3 if tp == 3 else 4, real=numbers[pair.count], tp=tp)
        product = numbers[pair.count] * real_width
        if product in products:  # another pair of the same width: other heads of the same sum
            count = products[product] // width
        small[pair.count] = count
        small |= {pair.width: width} if pair.width else {}
        products.setdefault(product, count * width)
        small |= _sections(fields, real_width, width)
        small |= _kv_heads(numbers, pair, count, tp=tp)
    for name, value in numbers.items():
        if name in small or role_of(name) in ("heads", "kv heads", "head dim", "layers"):
            continue
        for product, now in products.items():
            times = next((n for n in _MULTIPLES if value == n * product), 0)
            if times:
                small[name] = times * now
            elif (role_of(name) == "intermediate" or "hidden" in name) and value > product:
                small[name] = fit(3 * now, real=value, tp=tp, step=2)
    return {**fields, **small}


def _pairs(numbers: Mapping[str, int]) -> list[_Heads]:
    """Every number of heads with the width that belongs to it, by what their names share."""
    counts = [name for name in numbers if role_of(name) == "heads" or re.fullmatch(r"\w*(num|n)_\w*heads?", name)]
    counts = [name for name in counts if role_of(name) != "kv heads" and "kv" not in name and "key_value" not in name]
    widths = [name for name in numbers if role_of(name) == "head dim" or name == "dim_head"]
    found = []
    for count in counts:
        own = _words(count)
        fitting = sorted(widths, key=lambda name: len(own ^ _words(name)))
        found.append(_Heads(count, fitting[0] if fitting else ""))
    return found


def _words(name: str) -> set[str]:
    return set(name.split("_")) - {"num", "n", "head", "heads", "dim", "size", "attention"}


def _real_width(pair: _Heads, numbers: Mapping[str, int]) -> int:
    if pair.width:
        return numbers[pair.width]
    hidden = next((value for name, value in numbers.items() if role_of(name) == "hidden"), 0)
    return hidden // numbers[pair.count] if hidden % numbers[pair.count] == 0 else 0


def _sections(fields: Mapping[str, object], real: int, width: int) -> Fields:
    """Sections of rotary frequencies, whose sum is the width of a head: even numbers with the small sum."""
    found: Fields = {}
    for name, value in fields.items():
        if not isinstance(value, list | tuple) or not value or not all(type(part) is int for part in value):
            continue
        if sum(value) not in (real, real // 2) or width < 2 * len(value) * (real // sum(value)):
            continue
        total = width * sum(value) // real
        step = 2 if sum(value) == real else 1
        parts = [max(step, part * total // sum(value) // step * step) for part in value]
        parts[-1] += total - sum(parts)
        found[name] = parts
    return found


def _kv_heads(numbers: Mapping[str, int], pair: _Heads, count: int, *, tp: int) -> Fields:
    """Key-value heads: as many as there are, or a half of the heads where they are fewer."""
    found: Fields = {}
    for name, value in numbers.items():
        if role_of(name) == "kv heads" or ("kv_heads" in name and "num" in name):
            real = numbers[pair.count]
            fewer = count // 2 if gcd(count // 2, tp) == gcd(value, tp) else count
            found[name] = count if value == real else max(fewer, 1)
    return found
