"""The installed library's own application of a tensor-parallel plan to a live model."""

from collections.abc import Callable, Collection

from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel
from transformers.distributed import tensor_parallel


def apply_plan(model: PreTrainedModel, mesh: DeviceMesh, *, absent: Collection[str]) -> None:
    """Shard a model in place by the plan that it carries. Modules below the paths `absent` have no parameters left, and get no
    style where the version allows that.

    From 5.23 on the library takes one entry for each module (`_expand_parallel_plan`); before, it looks up every module's key
    itself, and up to 5.18 in the model's own plan alone.
    """
    shard: Callable[..., object] = tensor_parallel.apply_tensor_parallelism
    if not hasattr(model, "_expand_parallel_plan"):
        shard(model, mesh)
        return
    styles = {
        name: style
        for name, style in model._expand_parallel_plan(model.tp_plan).items()
        if not any(f"{name}.".startswith(f"{other}.") for other in absent)
    }
    shard(model, mesh, styles)
