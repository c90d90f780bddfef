"""The quantised twin: a small model whose checkpoint holds FP8 weights, with one scale for each block.

Source: Transformers 5.23.0, `quantizers/quantizer_finegrained_fp8.py` (`weight_scale_inv` beside each weight) and
`integrations/finegrained_fp8.py` (`Fp8Dequantize`: a scale for each block of the grid that the scales make).
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.weights.block_layout import quantised_experts, quantised_layers
from shardproof.planner.weights.quantised import Blocks, blocks_of, fields_of

_LARGEST = 400.0
"""The largest magnitude of an FP8 value that is written: those of `float8_e4m3fn` end at 448."""
_BLOCKS = (4, 2, 1)
"""Sizes of a twin's blocks, the first that fits is taken."""


def quantised_twin(loaded: LoadedModel, small: LoadedModel, *, tp: int) -> LoadedModel:
    """The small model with a `quantization_config` like that of the real one, in blocks that every one of `tp` ranks holds whole.

    Its weights are dequantised while they are loaded, as the client does without a GPU: so the ranks' parts of weights and scales
    are compared in float64, and no FP8 kernel runs.
    """
    config = copy.deepcopy(small.config)
    config.quantization_config = fields = dict(fields_of(loaded.config)) | {"dequantize": True}
    block = _block(build(replace(small, config=config)), tp)
    config.quantization_config = fields | {"weight_block_size": [block, block]}
    return replace(small, config=config)


def quantised_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a quantised twin as its checkpoint holds them: FP8 values, and float32 scales that differ by block."""
    blocks, held = blocks_of(getattr(model, "config", None)), dict[str, torch.Tensor]()
    generator = torch.Generator().manual_seed(0)
    for name, value, converted in _in_checkpoint(model, state):
        if converted:
            held[name], held[f"{name}_scale_inv"] = _in_blocks(value, blocks, generator)
        else:
            held[name] = value
    return held


def _in_checkpoint(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """The weights under the names of a checkpoint, one tensor for each expert; and whether each of them is quantised."""
    assert isinstance(model, PreTrainedModel)
    layers, stacks = quantised_layers(model), quantised_experts(model)
    path_of = {name: name.rpartition(".")[0] for name in state}
    stacked = {name: value for name, value in state.items() if path_of[name] in stacks}
    groups = [stacked, *({name: value} for name, value in state.items() if name not in stacked)]
    for group in filter(None, groups):
        name = next(iter(group))
        converted = name in stacked or (path_of[name] in layers and name.endswith(".weight"))
        for key, value in revert_weight_conversion(model, group).items():
            yield key, value.contiguous(), converted


def _in_blocks(weight: torch.Tensor, blocks: Blocks, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 values, and the scale of each block."""
    grid = [weight.shape[0] // blocks.out, weight.shape[1] // blocks.into]
    scale = (torch.rand(grid, generator=generator) + 0.5) * float(weight.abs().max()) / _LARGEST
    spread = scale.repeat_interleave(blocks.out, 0).repeat_interleave(blocks.into, 1)
    values = (weight / spread).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return values, scale


def _block(model: nn.Module, tp: int) -> int:
    """The largest block that divides every side of a quantised layer, and a rank's part of it."""
    sides = [
        side for _, value, converted in _in_checkpoint(model, model.state_dict()) if converted for side in value.shape
    ]
    parts = [side // tp if side % tp == 0 else side for side in sides]
    return next(block for block in _BLOCKS if all(part % block == 0 for part in parts))
