"""Blocks of a quantised checkpoint. Each block has one scale, so a rank has to hold whole blocks of a quantised layer.

Source: vLLM 0.32.0, `vllm/model_executor/layers/quantization/`: `utils/fp8_utils.py` (`validate_fp8_block_shape` and its like for
experts), `auto_awq.py` and `utils/marlin_utils.py` (the input size is not aligned).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Blocks:
    """Output and input features that share a scale, or a word of storage; 0 for as many as there are.

    `kept` are parts of the paths of modules that are not quantised, or regular expressions for them after `re:`.
    """

    out: int = 1
    into: int = 1
    kept: tuple[str, ...] = ()

    def cut(self, path: str, side: str, count: int, degree: int) -> int:
        """The size of the block that a rank's part of `count` features would cut, on one side of a module; 0 where it cuts
        none.
        """
        if self.keeps(path):
            return 0
        block = self.size(side, count)
        return block if count // degree % block else 0

    def keeps(self, path: str) -> bool:
        """Whether a module is not quantised."""
        return any(re.match(part[3:], path) if part.startswith("re:") else part in path for part in self.kept)

    def size(self, side: str, count: int) -> int:
        """The features of a block on one side of a module that has `count` of them."""
        return (self.out if side == "out_features" else self.into) or count


def method_of(config: object) -> str | None:
    """The method of a config's `quantization_config`, by its name in it; None where the checkpoint is not quantised."""
    fields = fields_of(config)
    return str(fields.get("quant_method") or "a method that its config does not name") if fields else None


def fields_of(config: object) -> Mapping[str, Any]:
    """The fields of a config's `quantization_config`; none where the checkpoint is not quantised."""
    given = getattr(config, "quantization_config", None)
    given = given if isinstance(given, Mapping) or given is None else given.to_dict()
    return given or {}


def blocks_of(config: object) -> Blocks:
    """The blocks in a config's `quantization_config`; blocks of one feature where there is none."""
    fields = fields_of(config)
    names = ("modules_to_not_convert", "ignored_layers", "ignore")
    kept = tuple(str(part) for name in names for part in fields.get(name) or ())
    if (block := fields.get("weight_block_size")) is not None:
        return Blocks(*_pair(block), kept)
    size, bits = fields.get("group_size"), fields.get("bits")
    match fields.get("quant_method"):
        case "awq":
            return Blocks(32 // bits if isinstance(bits, int) and bits else 1, _group(size, whole=0), kept)
        case "gptq":
            return Blocks(1, _group(size, whole=1), kept)
        case "compressed-tensors":
            return _of_groups(fields.get("config_groups"), kept)
        case _:
            return Blocks()


def _of_groups(groups: object, kept: tuple[str, ...]) -> Blocks:
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            block = weights.get("block_structure")
            return Blocks(*_pair(block), kept) if block else Blocks(1, _group(weights.get("group_size"), whole=1), kept)
    return Blocks()


def _pair(block: object) -> tuple[int, int]:
    sizes = [size for size in block if isinstance(size, int)] if isinstance(block, list | tuple) else []
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (1, 1)


def _group(size: object, *, whole: int) -> int:
    """The features of a group; `whole` where one group has all features (-1)."""
    return size if isinstance(size, int) and size > 0 else whole if size == -1 else 1
