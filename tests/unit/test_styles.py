"""The style table against the installed Transformers: the same names, and parameters laid out alike."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.distributed import tensor_parallel

from shardproof.planner.ir.placement import Placement, R, Shard
from shardproof.planner.ir.styles import STYLES
from shardproof.planner.transformers_facts.styles import lays_out_otherwise, modelled, needs_attribute, registered
from shardproof.planner.transformers_facts.version import style_exists

SHAPES = {1: (8,), 2: (8, 8), 3: (4, 8, 8)}
# An embedding has two dims, so where `embedding_colwise` would put a vector is no question.
CASES = [(style, ndim) for style in modelled() for ndim in SHAPES if (style, ndim) != ("embedding_colwise", 1)]
LINEAR_STYLES = [name for name, style in modelled().items() if style.needs in {"in_features", "out_features"}]
ALL_PARALLEL_STYLES = vars(tensor_parallel)["ALL_PARALLEL_STYLES"]
UNMODELLED = {"ep_router", "megamoe_experts", "megamoe_router"}
"""Styles of experts up to Transformers 5.22, which the table has no row for."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Two ranks that do not exist: enough to lay parameters out."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_the_names_are_those_of_the_installed_transformers() -> None:
    assert registered() - set(STYLES) <= UNMODELLED
    assert set(modelled()) == {style for style in STYLES if style_exists(style)}


def laid_out(style: str, parameter: str, ndim: int, mesh: DeviceMesh) -> Placement:
    """Where the installed style puts a parameter."""
    module = nn.Module()
    module.register_parameter(parameter, nn.Parameter(torch.empty(SHAPES[ndim], device="meta")))
    ALL_PARALLEL_STYLES[style].shard_param(module, parameter, mesh)
    tensor = module.get_parameter(parameter)
    if not isinstance(tensor, DTensor) or tensor.placements[0].is_replicate():
        return R
    placement = tensor.placements[0]
    return Shard(getattr(placement, "dim") % ndim, getattr(placement, "split_factor", 1))  # noqa: B009 - untyped


@pytest.mark.parametrize(("style", "ndim"), CASES)
@pytest.mark.parametrize("parameter", ["weight", "bias", "gate_up_proj"])
def test_parameters_lie_where_the_style_puts_them(style: str, parameter: str, ndim: int, mesh: DeviceMesh) -> None:
    alike = STYLES[style].placement(parameter, ndim) == laid_out(style, parameter, ndim, mesh)
    # Where the installed version lays out otherwise, the proof says so.
    assert alike or lays_out_otherwise(style, nn.Module())


@pytest.mark.parametrize("style", LINEAR_STYLES)
def test_a_style_refuses_a_module_without_the_attribute_it_needs(style: str, mesh: DeviceMesh) -> None:
    if not needs_attribute(style):  # up to Transformers 5.20
        ALL_PARALLEL_STYLES[style].install_forward(nn.Module(), mesh)
        return
    with pytest.raises(ValueError, match=f"has no `{STYLES[style].needs}`"):
        ALL_PARALLEL_STYLES[style].install_forward(nn.Module(), mesh)
