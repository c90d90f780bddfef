"""The bytes of quantised weights as they are stored, with their scales, zero points and packed words."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from safetensors import safe_open
from torch import nn

from shardproof.planner.weights.block_layout import is_in_fp8_blocks, quantised_experts, quantised_layers
from shardproof.planner.weights.quantised import blocks_of, method_of

_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
"""Of the other dtypes that safetensors names, an element is one byte, or half a byte of `F4`."""
_PLAIN = frozenset(("F64", "F32", "F16", "BF16"))
_SCALE = 4
"""Bytes of the float32 scale of a block in FP8."""


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """How a quantised checkpoint stores its weights.

    Attributes:
        widths: bytes for each element of the parameters of a module, by its path; modules that are not quantised have none.
        unknown: the method, where nothing is known of what it stores.
    """

    widths: Mapping[str, float] = field(default_factory=dict)
    unknown: str = ""


def stored_weights(model: nn.Module, checkpoint: Path | None) -> StoredWeights:
    """What the checkpoint's files hold; without files, what FP8 by blocks holds. Of other methods nothing is known then."""
    config = getattr(model, "config", None)
    method = method_of(config)
    if method is None:
        return StoredWeights()
    widths = _in_files(model, checkpoint) if checkpoint is not None and checkpoint.is_dir() else {}
    if not widths and is_in_fp8_blocks(config):
        blocks = blocks_of(config)
        converted = quantised_layers(model) | quantised_experts(model)
        widths = dict.fromkeys(converted, 1 + _SCALE / (blocks.out * blocks.into))
    return StoredWeights(widths, "" if widths else method)


def _in_files(model: nn.Module, folder: Path) -> dict[str, float]:
    """The width of every module under whose path the files hold something else than plain floating-point numbers; none at all
    where the path of such a tensor is no module's, for then part of the weights would count as plain ones.
    """
    held: dict[str, float] = defaultdict(float)
    packed: set[str] = set()
    elements = {path: _elements(module) for path, module in model.named_modules()}
    for name, dtype, shape in _tensors(folder):
        path = _owner(name, elements)
        held[path] += prod(shape) * _BITS.get(dtype, 4 if dtype.startswith("F4") else 8) / 8
        if dtype not in _PLAIN:
            packed.add(path)
    return {} if "" in packed else {path: held[path] / elements[path] for path in packed}


def _elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _owner(name: str, elements: Mapping[str, int]) -> str:
    """The path of the innermost module with parameters that a tensor's name lies in; empty where there is none."""
    while name:
        name = name.rpartition(".")[0]
        if elements.get(name):
            return name
    return ""


def _tensors(folder: Path) -> Iterator[tuple[str, str, list[int]]]:
    """The name, dtype and shape of every tensor in the folder's safetensors files. Their data are not read."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                tensor = file.get_slice(name)
                yield name, tensor.get_dtype(), tensor.get_shape()
