"""The inputs of a module whose forward says nothing of them: declared as `NAME: DTYPE[DIMS]`, or guessed from its layers."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from shardproof.planner.ir.errors import ArgumentError

Form: TypeAlias = dict[str, Tensor]

_DECLARED = re.compile(r"\s*(\w+)\s*:\s*(\w+)\s*\[([^\]]*)\]\s*")
_DTYPES = {
    "float": torch.float32,
    "float32": torch.float32,
    "float64": torch.float32,
    "bfloat16": torch.float32,
    "float16": torch.float32,
    "int": torch.long,
    "int64": torch.long,
    "long": torch.long,
    "int32": torch.int32,
    "bool": torch.bool,
}
"""Declared dtypes; a floating-point input has the model's own dtype."""
_BATCH, _LENGTH = ("b", "batch", "batch_size", "n", "rows"), ("t", "s", "l", "seq", "seq_len", "length", "tokens")


def declared(texts: Sequence[str], config: object, *, rows: int, length: int) -> Form:
    """Meta tensors of the declared inputs.

    A dim is a number, a field of the config, or a word: `b` is the batch size and `t` the number of tokens.

    Raises:
        ArgumentError: a text is not of the form, or a dim is no number and no field.
    """
    found: Form = {}
    for text in texts:
        match = _DECLARED.fullmatch(text)
        if match is None or match[2] not in _DTYPES:
            raise ArgumentError(
                f"--input {text!r} is not of the form NAME: DTYPE[DIMS], such as 'x: float[2, 16, 64]' or 'ids: int[b, t]'; "
                f"a DTYPE is one of {', '.join(_DTYPES)}."
            )
        sizes = [_size(dim.strip(), config, rows=rows, length=length, text=text) for dim in match[3].split(",") if dim.strip()]
        found[match[1]] = torch.empty(sizes, dtype=_DTYPES[match[2]], device="meta")
    return found


def _size(dim: str, config: object, *, rows: int, length: int, text: str) -> int:
    if dim.isdigit():
        return int(dim)
    value = getattr(config, dim, None)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if dim.lower() in _BATCH:
        return rows
    if dim.lower() in _LENGTH:
        return length
    raise ArgumentError(f"--input {text!r}: {dim} is no number and no field of the config; give a number.")


def guessed(module: nn.Module, *, rows: int, length: int) -> Iterator[Form]:
    """Forms of the arguments that the forward must be given, the likeliest first: tokens for a table, features for a linear
    layer, images for a convolution.
    """
    names = _needed(module)
    if not names:
        return
    for first in _firsts(module, rows, length):
        yield {name: (first if at == 0 else torch.empty_like(first)) for at, name in enumerate(names)}
        if len(names) > 1:
            yield {name: (first if at == 0 else torch.empty((rows,), device="meta")) for at, name in enumerate(names)}


def _needed(module: nn.Module) -> list[str]:
    arguments = inspect.signature(module.forward).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in arguments if one.default is inspect.Parameter.empty and one.kind not in several]


def _firsts(module: nn.Module, rows: int, length: int) -> Iterator[Tensor]:
    """One tensor for the first layer of each kind, in the order of the modules."""
    seen: set[type] = set()
    for layer in module.modules():
        if isinstance(layer, nn.Embedding) and nn.Embedding not in seen:
            seen.add(nn.Embedding)
            yield torch.empty((rows, length), dtype=torch.long, device="meta")
        elif isinstance(layer, nn.Conv2d) and nn.Conv2d not in seen:
            seen.add(nn.Conv2d)
            yield torch.empty((rows, layer.in_channels, *_image(layer)), device="meta")
        elif isinstance(layer, nn.Linear) and nn.Linear not in seen:
            seen.add(nn.Linear)
            yield torch.empty((rows, length, layer.in_features), device="meta")
            yield torch.empty((rows, layer.in_features), device="meta")


def _image(layer: nn.Conv2d) -> tuple[int, int]:
    """A few patches in each direction."""
    return tuple(max(4 * stride, 8) for stride in layer.stride)  # type: ignore[return-value]  # two of them


def tokens_of(form: Mapping[str, Tensor]) -> dict[str, int]:
    """The integer inputs of two dims, with their lengths: token ids."""
    return {name: value.shape[1] for name, value in form.items() if value.ndim == 2 and not value.is_floating_point()}
