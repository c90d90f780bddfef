"""Which styles the installed Transformers registers, and which of them do what `planner.ir.styles` says."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers.distributed import tensor_parallel

from shardproof.planner.ir.styles import STYLES, Style


@cache
def registered() -> frozenset[str]:
    """The names that the installed library accepts in a plan."""
    with suppress(ImportError):  # from 5.22 on, a module of its own registers the styles of experts
        import_module("transformers.distributed.expert_parallel")
    return frozenset(_registry())


@cache
def modelled() -> Mapping[str, Style]:
    """The styles that the installed library registers and whose effect is known here, by name."""
    return {name: style for name, style in STYLES.items() if name in registered()}


def is_unmodelled(style: str) -> bool:
    """Whether the installed library registers a style of which nothing is known here."""
    return style in registered() and style not in STYLES


def differs(style: str, module: nn.Module, *, sharded: bool) -> str:
    """What the installed library does with a style on this module, if that is not what `planner.ir.styles` says; else empty.

    Up to 5.20 the classes for linear layers serve embeddings too, and ask for no attribute (5.20.2,
    `distributed/tensor_parallel.py`, `ColwiseParallel` and `RowwiseParallel`). Up to 5.22 the output of experts is summed only
    where they are `sharded` (5.22.0, `MoeExpertsParallel`).
    """
    if style == "moe_tp_experts" and not sharded and _sums_by_source():
        return "does not sum the output of experts that are whole"
    if not any(True for _ in module.parameters(recurse=False)):
        return ""
    if why := lays_out_otherwise(style, module):
        return why
    if (needs := STYLES[style].needs) and not needs_attribute(style) and not hasattr(module, needs):
        return f"takes a module without {needs} too"
    return ""


def lays_out_otherwise(style: str, module: nn.Module) -> str:
    """How the installed library lays out a module's own parameters by a style, if not as `planner.ir.styles` says; else empty."""
    if hasattr(tensor_parallel, "EmbeddingParallel"):
        return ""
    if style == "embedding_rowwise" and not isinstance(module, nn.Embedding):
        return "splits the input features of a module that is no embedding"
    if STYLES[style].needs and isinstance(module, nn.Embedding):
        return "splits an embedding along its other dim"
    return ""


@cache
def needs_attribute(style: str) -> bool:
    """Whether the installed library refuses a style on a module without the attribute that `Style.needs` names; tried on one."""
    if STYLES[style].needs is None:
        return False
    try:
        _registry()[style].install_forward(nn.Module(), None)
    except ValueError:
        return True
    return False


def _sums_by_source() -> bool:
    hook = type(_registry()["moe_tp_experts"]).transform_output_post_forward
    return "source" in signature(hook).parameters


def parts_alike(style: str, module: nn.Module) -> bool:
    """Whether the ranks' parts of a module's own parameters have to be of one size. Up to 5.20 a module that runs on distributed
    tensors has to: their size is taken for that of one part times the degree, and training raises. A module that runs on each
    rank's own tensors, such as experts, does not. Tables need not either.
    """
    if hasattr(tensor_parallel.TensorParallelLayer, "_from_local_last_dim_shard") or isinstance(module, nn.Embedding):
        return False
    with torch.enable_grad():
        return style in registered() and not _registry()[style].should_use_local_tensors(module)


def _registry() -> dict[str, Any]:
    registry = vars(tensor_parallel)["ALL_PARALLEL_STYLES"]  # from 5.22 on it is another module's
    return {name: registry[name] for name in registry}
