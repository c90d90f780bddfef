"""Inputs of a module's forward as a user declares them, `NAME: DTYPE[DIMS]`, or as a function of theirs returns them."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shardproof.planner.ir.errors import ArgumentError, reason
from shardproof.planner.loading.custom_code import function_from_file

_FUNCTION = re.compile(r"(.+\.py):(\w+)")
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


def declared(texts: Sequence[str], config: object, *, rows: int, length: int) -> dict[str, Any]:
    """The declared inputs: meta tensors; integers that a function returns keep their values.

    A dim is a number, a field of the config, or a word: `b` is the batch size and `t` the number of tokens. `FILE.py:FUNCTION`
    names a function that returns the arguments by name; it is given the config if it takes an argument.

    Raises:
        ArgumentError: a text is not of the form, a dim is no number and no field, or a function returns no arguments.
        LoadError: a file cannot be read, or has no such function.
    """
    found: dict[str, Any] = {}
    for text in texts:
        if named := _FUNCTION.fullmatch(text.strip()):
            found |= _returned(named[1], named[2], config)
            continue
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


def as_texts(inputs: Sequence[str] | Mapping[str, Tensor | str]) -> list[str]:
    """Declared inputs as texts; in a mapping, a tensor stands for its dtype and shape.

    Raises:
        ArgumentError: a tensor has a dtype that cannot be declared, or a value is neither a tensor nor a text.
    """
    if not isinstance(inputs, Mapping):
        return list(inputs)
    return [f"{name}: {_form(name, value)}" for name, value in inputs.items()]


def _form(name: str, value: Tensor | str) -> str:
    if isinstance(value, str):
        return value
    dtype = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else ""
    if dtype not in _DTYPES:
        kind = dtype or type(value).__name__
        raise ArgumentError(
            f"the input {name} is {kind}; give a tensor of one of {', '.join(_DTYPES)}, or 'DTYPE[DIMS]'; other values come "
            "from a function, as 'FILE.py:FUNCTION'."
        )
    return f"{dtype}[{', '.join(map(str, value.shape))}]"


def _returned(path: str, name: str, config: object) -> dict[str, Any]:
    function = function_from_file(Path(path), name)
    try:
        given = function(config) if inspect.signature(function).parameters else function()
    except Exception as error:  # whatever the user's function raises
        raise ArgumentError(f"--inputs {path}:{name} raised {reason(error)}; mend that first.") from error
    if not isinstance(given, Mapping) or not given or not all(isinstance(key, str) for key in given):
        raise ArgumentError(
            f"--inputs {path}:{name} returns {type(given).__name__}; return a dict with the forward's keyword arguments."
        )
    return {key: _without_data(value) for key, value in given.items()}


def _without_data(value: Any) -> Any:
    """Floating-point tensors as their form, on the meta device; anything else as it is."""
    return value.to("meta") if isinstance(value, Tensor) and value.is_floating_point() else value


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
