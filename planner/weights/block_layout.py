"""Sharded dims of quantised linear layers in blocks, as Transformers lays out a checkpoint in FP8 by blocks.

Source: Transformers 5.23.0, `quantizers/base.py` (`update_parallel_plan`: a scale gets its weight's style, so that a
rank's part of the scales fits its part of the weight where it holds whole blocks) and `quantizers/quantizer_finegrained_fp8.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.placement import Shard
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.weights.quantised import Blocks, blocks_of, fields_of, method_of


@dataclass(frozen=True, slots=True)
class BlockedSide:
    """One sharded side (`in_features` or `out_features`) of a quantised linear layer: its features, and those of a block."""

    entry: str
    module: str
    side: str
    count: int
    block: int

    def is_cut(self, degree: int) -> bool:
        """Whether a rank's part ends inside a block. An uneven part is another finding's, or not known."""
        return self.count % degree == 0 and self.count // degree % self.block != 0


def blocked_sides(graph: Graph, assigned: Assigned, model: nn.Module) -> Iterator[BlockedSide]:
    """Every sharded side of a linear layer that is quantised in blocks; none of a checkpoint that is not quantised."""
    config = getattr(model, "config", None)
    if method_of(config) is None:
        return
    blocks, quantised = blocks_of(config), quantised_layers(model)
    for name, (placement, entry) in assigned.parameters.items():
        path, _, local = name.rpartition(".")
        module = graph.module_of[path]
        if (
            local != "weight"
            or not isinstance(placement, Shard)
            or "Linear" not in module.bases
            or path not in quantised
        ):
            continue
        side = "out_features" if placement.dim % 2 == 0 else "in_features"
        count = dict(module.numbers).get(side, 0)
        if (block := blocks.size(side, count)) > 1:
            yield BlockedSide(entry, path, side, count, block)


def is_modelled(graph: Graph, assigned: Assigned, model: nn.Module, degree: int) -> bool:
    """Whether it is known what ranks get of this checkpoint's quantised weights: FP8 by blocks, in linear layers that are whole,
    `colwise` or `rowwise`, with even parts.
    """
    config = getattr(model, "config", None)
    fields = fields_of(config)
    block = fields.get("weight_block_size")
    if method_of(config) != "fp8" or not isinstance(block, list | tuple) or blocks_of(config) == Blocks():
        return False
    if fields.get("modules_to_convert") or any(path.endswith(".experts") for path in graph.module_of):
        return False
    quantised = quantised_layers(model)
    for name, (placement, _) in assigned.parameters.items():
        path, _, _ = name.rpartition(".")
        if not isinstance(placement, Shard) or path not in quantised:
            continue
        style = assigned.modules.get(path)
        size = graph.values[graph.parameters[name]].shape[placement.dim]
        if style is None or style[0].name not in ("colwise", "rowwise") or size % degree:
            return False
    return True


def refused_by_quantiser(config: object, degree: int) -> str | None:
    """The words with which the installed Transformers refuses to shard a checkpoint of this method; empty where it does not, and
    None where that is not known: it has no such quantiser, or one that asks for more than a plan and a degree.

    Its quantiser's `update_parallel_plan` is called for a model without parameters, before any weight is read.
    """
    kind: Any = AUTO_QUANTIZER_MAPPING.get(method_of(config) or "")
    if not hasattr(kind, "update_parallel_plan"):
        return None
    settings = SimpleNamespace(distributed_config=SimpleNamespace(tp_size=degree))
    model = SimpleNamespace(config=settings, named_parameters=lambda: iter(()))
    try:
        object.__new__(kind).update_parallel_plan(model, {})
    except ValueError as error:
        return " ".join(str(error).split())
    except Exception:  # it asks for more
        return None
    return ""


def quantised_layers(model: nn.Module) -> frozenset[str]:
    """Paths of the linear layers that the quantiser of the installed Transformers converts; for other methods than FP8, those
    that the config does not keep.
    """
    config = getattr(model, "config", None)
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if method_of(config) != "fp8":
        blocks = blocks_of(config)
        return frozenset(path for path in linear if not blocks.keeps(path))
    assert isinstance(model, PreTrainedModel)
    kept = HfQuantizer.get_modules_to_not_convert(
        model, fields_of(config).get("modules_to_not_convert"), getattr(model, "_keep_in_fp32_modules", None)
    )
    return frozenset(path for path in linear if should_convert_module(path, kept))
