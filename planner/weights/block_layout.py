"""Sharded dims of quantised linear layers and stacked experts in blocks, as Transformers lays out a checkpoint in FP8 by blocks.

Source: Transformers 5.23.0, `quantizers/base.py` (`update_parallel_plan`: a scale gets its weight's style, so that a
rank's part of the scales fits its part of the weight where it holds whole blocks), `quantizers/quantizer_finegrained_fp8.py` and
`integrations/finegrained_fp8.py` (`replace_with_fp8_linear`: linear layers, and modules called `experts`).
"""

from collections.abc import Iterator, Mapping
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
    """One sharded side (`in_features` or `out_features`) of a quantised layer or of stacked experts: its features, and those of a
    block.
    """

    entry: str
    module: str
    side: str
    count: int
    block: int

    def is_cut(self, degree: int) -> bool:
        """Whether a rank's part ends inside a block. An uneven part is another finding's, or not known."""
        return self.count % degree == 0 and self.count // degree % self.block != 0


def blocked_sides(graph: Graph, assigned: Assigned, model: nn.Module) -> Iterator[BlockedSide]:
    """Every sharded side that is quantised in blocks; none of a checkpoint that is not quantised."""
    config = getattr(model, "config", None)
    if method_of(config) is None:
        return
    blocks, layers, experts = blocks_of(config), quantised_layers(model), quantised_experts(model)
    for name, (placement, entry) in assigned.parameters.items():
        path, _, local = name.rpartition(".")
        shape = graph.values[graph.parameters[name]].shape
        if not isinstance(placement, Shard):
            continue
        if path in experts and len(shape) == 3 and placement.dim > 0:
            side = "out_features" if placement.dim == 1 else "in_features"
            count, path = shape[placement.dim] // placement.blocks, name
        elif path in layers and local == "weight":
            side = "out_features" if placement.dim % 2 == 0 else "in_features"
            count = dict(graph.module_of[path].numbers).get(side, 0)
        else:
            continue
        if (block := blocks.size(side, count)) > 1:
            yield BlockedSide(entry, path, side, count, block)


_LINEAR = frozenset(("colwise", "rowwise", "colwise_gather_output", "rowwise_split_input"))
_EXPERTS = frozenset(("moe_tp_experts",))


def is_modelled(graph: Graph, assigned: Assigned, model: nn.Module, degree: int) -> bool:
    """Whether it is known what ranks get of this checkpoint's quantised weights: every rank holds all of them whole, or they are
    in FP8 by blocks.

    Such blocks are known in linear layers that are whole, by columns or by rows, and in stacked experts of which a rank holds
    whole ones or a part of each, with even parts.
    """
    config = getattr(model, "config", None)
    sharded = {name: placement for name, (placement, _) in assigned.parameters.items() if isinstance(placement, Shard)}
    if not any(_may_be_packed(name, model) for name in sharded):
        return True
    if not is_in_fp8_blocks(config) or fields_of(config).get("modules_to_convert"):
        return False
    layers, experts = quantised_layers(model), quantised_experts(model)
    packed = fields_of(config).get("expert_dtype", "fp8") != "fp8"
    if any(packed or not _is_stack(model.get_submodule(path)) for path in experts):
        return False
    for name, placement in sharded.items():
        path, _, _ = name.rpartition(".")
        if path not in layers | experts:
            continue
        count = graph.values[graph.parameters[name]].shape[placement.dim]
        if placement.parts or count % (degree * placement.blocks):
            return False
        whole_experts = path in experts and placement.dim == 0
        style = assigned.modules.get(path)
        if not whole_experts and (style is None or style[0].name not in (_EXPERTS if path in experts else _LINEAR)):
            return False
    return True


def is_in_fp8_blocks(config: object) -> bool:
    """Whether a checkpoint is in FP8 with one scale for each block of a weight."""
    block = fields_of(config).get("weight_block_size")
    return method_of(config) == "fp8" and isinstance(block, list | tuple) and blocks_of(config) != Blocks()


def _may_be_packed(name: str, model: nn.Module) -> bool:
    """Whether a parameter may be stored quantised: by its own name, with the installed quantiser, and not kept by the config.

    A quantiser that does not name the parameters that it packs may pack every one. One that names `weight` may pack stacks of
    weights too, whatever they are called: some replace the modules of experts, and do not name what those hold.
    """
    config = getattr(model, "config", None)
    path, _, local = name.rpartition(".")
    named = getattr(AUTO_QUANTIZER_MAPPING.get(method_of(config) or ""), "serialized_names", None)
    if not named or not isinstance(named, Mapping):
        return True
    packs = {one.strip(".") for one in named}  # `weight`, or with a dot before it
    is_stack = _WEIGHT in packs and model.get_parameter(name).ndim > 2
    kept = fields_of(config).get("modules_to_not_convert") or []
    return (local in packs or is_stack) and should_convert_module(path, list(kept))


_WEIGHT = "weight"


def _is_stack(module: nn.Module) -> bool:
    """Whether a module holds its experts in parameters of three dims, and no others."""
    return all(parameter.ndim == 3 for parameter in module.parameters())


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
    return frozenset(path for path in _not_kept(model) if isinstance(model.get_submodule(path), nn.Linear))


def quantised_experts(model: nn.Module) -> frozenset[str]:
    """Paths of the modules called `experts` that the quantiser for FP8 converts; none of other methods."""
    if method_of(getattr(model, "config", None)) != "fp8":
        return frozenset()
    return frozenset(path for path in _not_kept(model) if path.endswith(".experts"))


def _not_kept(model: nn.Module) -> list[str]:
    """Paths of the modules that the checkpoint's config does not keep as they are."""
    config = getattr(model, "config", None)
    paths = [path for path, _ in model.named_modules()]
    if method_of(config) != "fp8":
        blocks = blocks_of(config)
        return [path for path in paths if not blocks.keeps(path)]
    assert isinstance(model, PreTrainedModel)
    kept = HfQuantizer.get_modules_to_not_convert(
        model, fields_of(config).get("modules_to_not_convert"), getattr(model, "_keep_in_fp32_modules", None)
    )
    return [path for path in paths if should_convert_module(path, kept)]
