"""Drop the weights that a stage lacks, and untie those that are tied."""

from collections.abc import Sequence
from mmap import mmap

import torch
from torch import nn


def drop(model: nn.Module, names: Sequence[str]) -> None:
    """Replace the weights of these modules by zeros that need no memory.

    A weight that is tied to one of another module stays in that module, and a module that others hold too stays whole.
    """
    inside = tuple(f"{name}." for name in names)
    named = model.named_modules(remove_duplicate=False)
    held = {id(module) for path, module in named if not f"{path}.".startswith(inside)}
    for name in names:
        for module in model.get_submodule(name).modules():
            if id(module) in held:
                continue
            for own, weight in list(module.named_parameters(recurse=False)):
                setattr(module, own, nn.Parameter(_nothing(weight), requires_grad=False))
            for own, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[own] = _nothing(buffer)


def _nothing(value: torch.Tensor) -> torch.Tensor:
    """Zeros that need no memory: on the CPU, fresh pages that are allocated at the first write (some models rescale all their
    weights in place); on a GPU, one element that is expanded.
    """
    if value.is_meta or not value.numel():
        return torch.zeros_like(value)
    if value.device.type != "cpu":
        return torch.zeros((), dtype=value.dtype, device=value.device).expand(value.shape)
    pages = mmap(-1, value.numel() * value.element_size())
    return torch.frombuffer(pages, dtype=value.dtype).reshape(value.shape)


def untie(model: nn.Module) -> None:
    """Give every name its own parameter: a style shards one name at a time. Gradients are summed over names later."""
    seen: set[int] = set()
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if id(value) in seen:
                setattr(module, name, nn.Parameter(value.detach().clone()))
            seen.add(id(value))
