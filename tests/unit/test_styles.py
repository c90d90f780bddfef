"""The style table against the installed Transformers: the same names, and parameters laid out alike."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import transformers.distributed.expert_parallel
import transformers.distributed.tensor_parallel  # noqa: F401 - importing these two registers the styles
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES

from shardproof.planner.ir.placement import Placement, R, Shard
from shardproof.planner.ir.styles import STYLES

SHAPES = {1: (8,), 2: (8, 8), 3: (4, 8, 8)}
# An embedding has two dims, so where `embedding_colwise` would put a vector is no question.
CASES = [(style, ndim) for style in STYLES for ndim in SHAPES if (style, ndim) != ("embedding_colwise", 1)]
LINEAR_STYLES = [name for name, style in STYLES.items() if style.needs in {"in_features", "out_features"}]


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Two ranks that do not exist: enough to lay parameters out."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_the_names_are_those_of_the_installed_transformers() -> None:
    assert set(STYLES) == set(ALL_PARALLEL_STYLES.valid_keys())


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
    assert STYLES[style].placement(parameter, ndim) == laid_out(style, parameter, ndim, mesh)


@pytest.mark.parametrize("style", LINEAR_STYLES)
def test_a_style_refuses_a_module_without_the_attribute_it_needs(style: str, mesh: DeviceMesh) -> None:
    with pytest.raises(ValueError, match=f"has no `{STYLES[style].needs}`"):
        ALL_PARALLEL_STYLES[style].install_forward(nn.Module(), mesh)
