"""The inputs of a module of any class, guessed from its layers where nobody declared them."""

import inspect
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

Form: TypeAlias = dict[str, Tensor]


def guessed(module: nn.Module, *, rows: int, length: int) -> Iterator[Form]:
    """Forms of the arguments that the forward must be given, the likeliest first: tokens for a table, features for a linear
    layer, images for a convolution.
    """
    names = _needed(module)
    if not names:
        return
    for first in _firsts(module, rows, length):
        yield {name: (first if at == 0 else torch.empty_like(first)) for at, name in enumerate(names)}
        if len(names) > 1:
            yield {name: (first if at == 0 else torch.empty((rows,), device="meta")) for at, name in enumerate(names)}


def _needed(module: nn.Module) -> list[str]:
    arguments = inspect.signature(module.forward).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in arguments if one.default is inspect.Parameter.empty and one.kind not in several]


def _firsts(module: nn.Module, rows: int, length: int) -> Iterator[Tensor]:
    """One tensor for the first layer of each kind, in the order of the modules."""
    seen: set[type] = set()
    for layer in module.modules():
        if isinstance(layer, nn.Embedding) and nn.Embedding not in seen:
            seen.add(nn.Embedding)
            yield torch.empty((rows, length), dtype=torch.long, device="meta")
        elif isinstance(layer, nn.Conv2d) and nn.Conv2d not in seen:
            seen.add(nn.Conv2d)
            yield torch.empty((rows, layer.in_channels, *_image(layer)), device="meta")
        elif isinstance(layer, nn.Linear) and nn.Linear not in seen:
            seen.add(nn.Linear)
            yield torch.empty((rows, length, layer.in_features), device="meta")
            yield torch.empty((rows, layer.in_features), device="meta")


def _image(layer: nn.Conv2d) -> tuple[int, int]:
    """A few patches in each direction."""
    return tuple(max(4 * stride, 8) for stride in layer.stride)  # type: ignore[return-value]  # two of them


def tokens_of(form: Mapping[str, Tensor]) -> dict[str, int]:
    """The integer inputs of two dims, with their lengths: token ids."""
    tensors = {name: value for name, value in form.items() if isinstance(value, Tensor)}
    return {
        name: value.shape[1] for name, value in tensors.items() if value.ndim == 2 and not value.is_floating_point()
    }
