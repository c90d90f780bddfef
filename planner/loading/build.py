"""Build a model from its config and class; on the meta device without data."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from shardproof.planner.ir.errors import LoadError, reason
from shardproof.planner.loading.configs.config_defaults import empty_fields
from shardproof.planner.loading.implementations import mark
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.loading.source_lines import built_at
from shardproof.planner.loading.version_breaks import version_advice


def build(loaded: LoadedModel, *, device: str = "meta", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build the model in evaluation mode; on `meta` its parameters have no data.

    Raises:
        LoadError: its constructor raises.
    """
    try:
        with quiet(), torch.device(device), NumbersStay():
            make: Callable[..., nn.Module] = loaded.model_class._from_config
            # A copy: `post_init` deletes an old `gradient_checkpointing` field, which the next model would need.
            model = make(deepcopy(loaded.config), dtype=dtype, **loaded.asked.keywords())
    except Exception as error:
        kind = loaded.model_class
        why = f"{reason(error)}{built_at(error, kind)}"
        advice = version_advice(error) + empty_fields(error, loaded.config, kind)
        raise LoadError(f"{loaded.name}: {kind.__name__} does not build from this config ({why}).{advice}") from error
    if device == "meta":
        _leave_no_data(model)
    mark(model, loaded.asked)
    return model.eval()


class NumbersStay(TorchFunctionMode):
    """A lone integer that a constructor puts into a tensor keeps its value on the meta device: code computes sizes from it."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("data")
        if func is torch.tensor and type(given) is int and "device" not in kwargs:
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def _leave_no_data(model: nn.Module) -> None:
    """Move tensors to `meta` that a constructor made on another device (`torch.FloatTensor(...)` ignores the default
    device).
    """
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                made = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved.setdefault(id(parameter), made)
