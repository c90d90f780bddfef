"""Inputs of a module's forward as a user declares them, `NAME: DTYPE[DIMS]`."""

import re
from collections.abc import Sequence

import torch

from shardproof.planner.ir.errors import ArgumentError

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


def declared(texts: Sequence[str], config: object, *, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Meta tensors of the declared inputs.

    A dim is a number, a field of the config, or a word: `b` is the batch size and `t` the number of tokens.

    Raises:
        ArgumentError: a text is not of the form, or a dim is no number and no field.
    """
    found: dict[str, torch.Tensor] = {}
    for text in texts:
        match = _DECLARED.fullmatch(text)
        if match is None or match[2] not in _DTYPES:
            raise ArgumentError(
                f"--input {text!r} is not of the form NAME: DTYPE[DIMS], such as 'x: float[2, 16, 64]' or 'ids: int[b, t]'; "
                f"a DTYPE is one of {', '.join(_DTYPES)}."
            )
        sizes = [
            _size(dim.strip(), config, rows=rows, length=length, text=text)
            for dim in match[3].split(",")
            if dim.strip()
        ]
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


_BATCH, _LENGTH = ("b", "batch", "batch_size", "n", "rows"), ("t", "s", "l", "seq", "seq_len", "length", "tokens")
