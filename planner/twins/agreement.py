"""Sizes of a twin's parts that have to agree: found by what the forward says does not fit, and by what is equal in the model."""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy

from transformers import PreTrainedConfig

from shardproof.planner.loading.configs.field_roles import role_of

_WIDTHS = ("hidden", "intermediate", "head dim", None)
MOST = 8
"""Configs that are offered for one exception."""


def agreeing(real: PreTrainedConfig, small: PreTrainedConfig, text: str) -> Iterator[PreTrainedConfig]:
    """Configs of a twin in which a size that an exception names has the value of another that it names.

    Sizes that are equal in the real config come first; others follow, because the parts of a config made of defaults need not
    fit each other.

    Args:
        real: the config that the twin was made of.
        small: that of the twin.
        text: what the twin's forward raised.
    """
    numbers = list(dict.fromkeys(int(word) for word in re.findall(r"\d+", text)))
    sizes, before = dict(_sizes(small)), dict(_sizes(real))
    found: list[tuple[bool, str, int]] = []
    for path, size in sizes.items():
        if "." not in path or size not in numbers or role_of(path.rpartition(".")[2]) not in _WIDTHS:
            continue
        for other in numbers:
            if other in (size, 0, 1):
                continue
            equal = any(sizes[one] == other and before.get(one) == before.get(path) for one in sizes)
            if equal or any(value == other for one, value in sizes.items() if one != path):
                found.append((not equal, path, other))
    width = _text_width(small)
    given = [(True, path, width) for path in sizes if width and _gives_way(path, sizes) and sizes[path] != width]
    for _, path, size in dict.fromkeys([*sorted(found, key=lambda one: one[0]), *given][:MOST]):
        made = deepcopy(small)
        *parts, name = path.split(".")
        owner: object = made
        for part in parts:
            owner = getattr(owner, part)
        setattr(owner, name, size)
        yield made


def _text_width(config: PreTrainedConfig) -> int:
    """The width of the language model in a model of models; 0 where there is none."""
    text = config.get_text_config(decoder=True)
    width = getattr(text, "hidden_size", 0) if text is not config else 0
    return width if isinstance(width, int) else 0


def _gives_way(path: str, sizes: Mapping[str, int]) -> bool:
    """Whether a part's field is the width that it hands on: named so, or the second of two widths."""
    parent, _, name = path.rpartition(".")
    if not parent or "text" in parent:
        return False
    widths = [one for one in sizes if one.rpartition(".")[0] == parent and role_of(one.rpartition(".")[2]) == "hidden"]
    return name.startswith(("out", "proj", "decoder_hidden")) or (len(widths) > 1 and name == "hidden_size")


def _sizes(config: PreTrainedConfig, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every integer field of a config and of its parts, by dotted path."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _sizes(value, f"{prefix}{name}.")
        elif type(value) is int and value > 1 and not name.startswith("_"):
            yield f"{prefix}{name}", value
