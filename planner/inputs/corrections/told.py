"""What an exception of the model's own code says: that an argument is no image, or a size and the one that was wanted."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from shardproof.planner.inputs.call_form import ROWS, SIDE, CallForm
from shardproof.planner.inputs.mended import LARGEST

_SIDES = (32, 64, 224)
"""Sides of images that are tried where one does not divide into patches."""


def told(model: nn.Module, form: CallForm, error: BaseException) -> Iterator[CallForm]:
    """The forms that it asks for."""
    yield from _images(model, form, error)
    yield from _sizes(form, error)


def _images(model: nn.Module, form: CallForm, error: BaseException) -> Iterator[CallForm]:
    """Images in place of arguments with another number of dims, of another layout, or of other sides."""
    text = str(error)
    asks_for_axes = isinstance(error, AssertionError) and re.search(r"\b(axis|axes|dims?|dimensions?)\b", text)
    for name, old in form.tensors().items():
        if _wants_four(error, len(old.dims)):
            yield form.with_argument(name, replace(old, dims=(ROWS, _colours(model), SIDE, SIDE), dtype=torch.float32))
        if asks_for_axes:
            yield form.with_argument(name, replace(old, dims=(ROWS, SIDE, SIDE, _colours(model))))
        for side in _SIDES if len(old.dims) == 4 and re.search(r"divi[ds]|chunk|patch", text) else ():
            yield form.with_argument(name, replace(old, dims=(*old.dims[:2], side, side)))


def _wants_four(error: BaseException, dims: int) -> bool:
    """Whether four dims are wanted: said in words, or by a table of what is done by the number of dims that lacks this one."""
    if isinstance(error, KeyError):
        return dims != 4 and error.args[:1] == (dims,)
    numbers = re.search(r"(\d)(?:-?[dD] | dims).*?(\d)-?[dD]", str(error))
    return numbers is not None and (numbers[1] == "4" or int(numbers[2]) == dims != 4)


def _colours(model: nn.Module) -> int:
    """The channels of images: those that the first convolution takes, else three."""
    found = (one.in_channels for one in model.modules() if isinstance(one, nn.Conv2d))
    return next(found, 3)


def _sizes(form: CallForm, error: BaseException) -> Iterator[CallForm]:
    """A size that it names in place of the size that it names before; a single one as the only size beside the rows."""
    numbers = [int(one) for one in re.findall(r"(?<![\w.])\d+(?![\w.])", str(error))]
    if isinstance(error, AssertionError) and len(numbers) == 1 and 0 < numbers[0] <= LARGEST:
        for name, old in form.tensors().items():
            yield form.with_argument(name, replace(old, dims=(ROWS, numbers[0])))
    for got, wanted in pairwise(numbers):
        for name, old in form.tensors().items() if 0 < wanted <= LARGEST and got != wanted else ():
            if got in old.dims[1:]:
                dims = tuple(wanted if dim == got and at else dim for at, dim in enumerate(old.dims))
                yield form.with_argument(name, replace(old, dims=dims))
