"""Corrections of a call's form by what its forward raised: another width, another number of dims, an argument more.

The operator that failed says which sizes it wanted, and from which arguments its operands were made (`failed_operator`).
The line that failed says which argument was none, or how many dims it unpacks. Every correction is a guess: whether the forward
comes further with it is what decides.
"""

import linecache
import re
from collections.abc import Iterator
from dataclasses import replace
from math import isqrt, lcm, prod

import torch
from torch import nn

from shardproof.planner.inputs.call_form import (
    FRAMES,
    GRID,
    PLACES,
    ROWS,
    SIDE,
    TOKENS,
    UNKNOWN_WIDTH,
    CallForm,
    Dims,
    PlainArgument,
    TensorArgument,
    dims_of_words,
    forward_arguments,
    guess,
)
from shardproof.planner.inputs.corrections.failed_lines import frames_of_models, none_on_lines, words_on_lines
from shardproof.planner.inputs.corrections.failed_operator import FailedOperator, Operand, Witness
from shardproof.planner.inputs.corrections.told import told
from shardproof.planner.inputs.mended import LARGEST

_MOST_DIMS = 5
"""Dims above which an argument gets no more."""


def corrections(
    model: nn.Module, form: CallForm, error: BaseException, witness: Witness, *, rows: int, tokens: int
) -> Iterator[CallForm]:
    """Forms that a failure asks for, the likeliest first."""
    text, failed = str(error), witness.failed if witness.raised(error) else None
    yield from _absent(model, form, error)
    yield from _missing_key(form, error)
    yield from _unpacked(model, form, error, witness)
    if failed is None:
        yield from told(model, form, error)
    yield from _read_values(form, text, failed)
    if failed is not None:
        yield from _other_dtype(form, text, failed)
        yield from _wanted_width(form, failed, rows=rows, tokens=tokens)
        yield from _wanted_dims(form, text, failed)
        yield from _agreeing_sizes(form, text, failed, rows=rows, tokens=tokens)
        yield from _folded(form, text, failed, rows=rows, tokens=tokens)
        yield from _other_grid(form, text, failed)


def _absent(model: nn.Module, form: CallForm, error: BaseException) -> Iterator[CallForm]:
    """Arguments that are None on the lines that failed, or that the exception names."""
    arguments = forward_arguments(model)
    have = {name.partition(".")[0] for name, _ in form.arguments}
    named = [word for word in re.findall(r"\w+", str(error)) if word in arguments and word not in have]
    if not named and "None" in str(error):
        named = [name for name in none_on_lines(error) if name in arguments and name not in have]
    if not named and ("None" in str(error) or isinstance(error, TypeError | ValueError)):
        named = [name for name in words_on_lines(error) if name in arguments and name not in have]
    for name in dict.fromkeys(named):
        larger = form
        for part, argument in guess(model, name).items():
            larger = larger.with_argument(part, argument)
        yield larger


def _missing_key(form: CallForm, error: BaseException) -> Iterator[CallForm]:
    """A key of a dict that the forward reads: one number for each row, as conditions of sizes are, or a vector."""
    keys = [str(error.args[0])] if isinstance(error, KeyError) and error.args else []
    keys = keys or (none_on_lines(error) if "None" in str(error) else [])
    for name, known in form.arguments:
        for key in keys if isinstance(known, PlainArgument) and known.mapping else ():
            if (part := f"{name}.{key}") not in dict(form.arguments):
                yield form.with_argument(part, TensorArgument((ROWS, 2 if "resolution" in key else 1)))
                yield form.with_argument(part, TensorArgument((ROWS, TOKENS, UNKNOWN_WIDTH)))


def _unpacked(model: nn.Module, form: CallForm, error: BaseException, witness: Witness) -> Iterator[CallForm]:
    """Another number of dims, where a line gives a name to each dim of a shape, or indexes one that is not there."""
    text = str(error)
    if not any(word in text for word in ("unpack", "index out of range", "too many indices")):
        return
    for frame in frames_of_models(error):
        line = linecache.getline(frame.tb_frame.f_code.co_filename, frame.tb_lineno)
        local = frame.tb_frame.f_locals
        behind = {word: witness.made_of(local.get(word)) for word in re.findall(r"\w+", line)}
        found = re.search(r"\(?\s*((?:\w+\s*,\s*)+\w+)\s*,?\s*\)?\s*=\s*(\w+)\.(?:shape|size)", line)
        if found and "unpack" in text:
            dims = dims_of_words(model, re.split(r"\s*,\s*", found[1]))
            for name in sorted(behind.get(found[2], ())):
                yield form.with_argument(name, replace(_tensor(form, name), dims=_kept_widths(form, name, dims)))
        for name in sorted({name for names in behind.values() for name in names}):
            old = _tensor(form, name)
            if len(old.dims) > _MOST_DIMS:
                continue
            yield form.with_argument(name, replace(old, dims=(*old.dims[:1], 1, *old.dims[1:])))
            if "too many values" in text and len(old.dims) > 2:
                yield form.with_argument(name, replace(old, dims=(*old.dims[:1], *old.dims[2:])))


def _kept_widths(form: CallForm, name: str, dims: Dims) -> Dims:
    """Dims with the width that the argument had before in place of an unknown one."""
    known = [dim for dim in _tensor(form, name).dims[-1:] if isinstance(dim, int)]
    return tuple(known[0] if dim == UNKNOWN_WIDTH and known else dim for dim in dims)


def _read_values(form: CallForm, text: str, failed: FailedOperator | None) -> Iterator[CallForm]:
    """Real numbers for an argument that the code reads."""
    if "meta" not in text or not any(word in text for word in ("item", "data", "same device", "copy out")):
        return
    made = failed.operands[0].arguments if failed is not None and failed.operands else frozenset[str]()
    for name in form.tensors():
        if not made or name in made:
            old = _tensor(form, name)
            if not old.filled and len(old.dims) < 3:
                yield form.with_argument(name, replace(old, filled=True))


def _other_dtype(form: CallForm, text: str, failed: FailedOperator) -> Iterator[CallForm]:
    wanted = None
    if re.search(r"Long|indices must be|IntTensor|integer|arrays used as indices", text):
        wanted = torch.long
    elif "bool" in text.lower():
        wanted = torch.bool
    elif re.search(r"expected .*floating|Float but found|not implemented for 'Long'", text):
        wanted = torch.float32
    if wanted is None:
        return
    for name in _made_of(failed):
        old = form.tensors().get(name)
        if old is not None and failed.name == "embedding" and old.dims[-1:] == (UNKNOWN_WIDTH,):
            yield form.with_argument(name, TensorArgument((ROWS, TOKENS), torch.long))
        if old is not None and old.dtype is not wanted:
            yield form.with_argument(name, replace(old, dtype=wanted))


_WEIGHT_AT = {"linear": 1, "layer_norm": 1, "rms_norm": 1, "group_norm": 1}


def _wanted_width(form: CallForm, failed: FailedOperator, *, rows: int, tokens: int) -> Iterator[CallForm]:
    """The width that a layer's weight has, for the argument that the layer is given."""
    if len(failed.operands) < 2 or not failed.operands[0].arguments:
        return
    given, weight = failed.operands[0], failed.operands[1]
    if failed.name in ("conv1d", "conv2d", "conv3d"):
        yield from _for_convolution(form, given, weight, rows=rows, tokens=tokens)
        return
    if failed.name not in _WEIGHT_AT or not given.shape:
        return
    got, wanted = given.shape[-1], weight.shape[-1]
    if len(given.arguments) > 1:  # widths that were joined
        yield from _added(form, given, wanted - got, rows=rows, tokens=tokens)
    for name in sorted(given.arguments, key=lambda one: _tensor(form, one).dims[-1] != got):
        yield from _scaled(form, name, got, wanted, rows=rows, tokens=tokens)
    for name in sorted(given.arguments):  # vectors for which there was a single number
        old = _tensor(form, name)
        if old.dims == (ROWS,) and got in (rows, 1):
            yield form.with_argument(name, replace(old, dims=(ROWS, wanted)))
            yield form.with_argument(name, replace(old, dims=(ROWS, TOKENS, wanted)))


def _scaled(form: CallForm, name: str, got: int, wanted: int, *, rows: int, tokens: int) -> Iterator[CallForm]:
    """One dim of an argument in the ratio in which an operand's last dim is wrong; the last dim first, of images the second."""
    old = _tensor(form, name)
    sizes = old.sizes(rows, tokens)
    order = list(reversed(range(len(sizes)))) if len(sizes) < 4 else [1, 2, *range(len(sizes) - 1, 2, -1)]
    for at in order:
        size = sizes[at]
        if old.dims[at] in (ROWS, TOKENS) or (size * wanted) % got or (size != got and got % size and size % got):
            continue
        new = size * wanted // got
        if 0 < new <= LARGEST and new != size:
            yield form.with_argument(name, replace(old, dims=(*old.dims[:at], new, *old.dims[at + 1 :])))


def _added(form: CallForm, given: Operand, more: int, *, rows: int, tokens: int) -> Iterator[CallForm]:
    """One dim of an argument larger or smaller by the elements that lack where several arguments were joined."""
    for name in sorted(given.arguments, key=lambda one: -len(_tensor(form, one).dims)):
        old = _tensor(form, name)
        sizes = old.sizes(rows, tokens)
        for at in reversed(range(1 if old.dims[:1] == (ROWS,) else 0, len(sizes))):
            if 0 < sizes[at] + more <= LARGEST and more:
                yield form.with_argument(
                    name, replace(old, dims=(*old.dims[:at], sizes[at] + more, *old.dims[at + 1 :]))
                )


def _for_convolution(form: CallForm, given: Operand, weight: Operand, *, rows: int, tokens: int) -> Iterator[CallForm]:
    spatial, channels = len(weight.shape) - 2, weight.shape[1]
    grid: Dims = {1: (GRID,), 2: (SIDE, SIDE), 3: (FRAMES, SIDE, SIDE)}[spatial]
    for name in sorted(given.arguments):
        old = _tensor(form, name)
        if len(given.shape) == spatial + 2 and given.shape[1] != channels:
            yield from _scaled(form, name, given.shape[1], channels, rows=rows, tokens=tokens)
        first = () if old.listed else (ROWS,)
        if len(given.arguments) > 1 and len(given.shape) == spatial + 2:
            yield from _added(form, given, channels - given.shape[1], rows=rows, tokens=tokens)
        yield form.with_argument(name, replace(old, dims=(*first, channels, *grid)))
        if spatial == 2:
            yield form.with_argument(name, replace(old, dims=(*first, FRAMES, channels, *grid)))
            yield form.with_argument(name, replace(old, dims=(*first, channels, FRAMES, *grid)))


def _wanted_dims(form: CallForm, text: str, failed: FailedOperator) -> Iterator[CallForm]:
    """A dim more or less, where an operator says that the numbers of dims do not fit."""
    if not re.search(
        r"Dimension out of range|must be a \d+-?D|Expected \d|same number of dimensions|too many indices|"
        r"permute|number of dims|dimensions? of (the )?input|channel dim|dimension specified|expand",
        text,
    ):
        return
    for name in _made_of(failed):
        old = _tensor(form, name)
        first, rest = old.dims[:1], old.dims[1:]
        if len(old.dims) == 2:
            yield form.with_argument(name, replace(old, dims=(*first, TOKENS, *rest)))
        if len(old.dims) == 3 and first == (ROWS,):
            yield form.with_argument(name, replace(old, dims=(*first, rest[-1], SIDE, SIDE)))
        if len(old.dims) == 4:
            yield form.with_argument(name, replace(old, dims=(*first, rest[0], FRAMES, *rest[1:])))
            yield form.with_argument(name, replace(old, dims=(*first, FRAMES, *rest)))
        yield form.with_argument(name, replace(old, dims=(*first, 1, *rest)))
        if old.dims and old.dims[0] != ROWS:
            yield form.with_argument(name, replace(old, dims=(ROWS, *old.dims)))
        elif len(old.dims) == 3:
            yield form.with_argument(name, replace(old, dims=old.dims[1:]))
        if len(old.dims) > 1 and first == (ROWS,):
            yield form.with_argument(name, replace(old, dims=first))


_SIZES = (
    r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)",
    r"Expected size (\d+) but got size (\d+)",
    r"[eE]xpected .*?(\d+).*? got .*?(\d+)",
    r"has size (\d+) for operand \d+ which does not broadcast with previously seen size (\d+)",
    r"\((?:\d+)x(\d+) and (\d+)x\d+\)",
    r"\[[\d, ]*?(\d+)\] [xX] \[(\d+)[\d, ]*\]",
    r"expanded size of the tensor \((\d+)\) must match the existing size \((\d+)\)",
)


def _agreeing_sizes(form: CallForm, text: str, failed: FailedOperator, *, rows: int, tokens: int) -> Iterator[CallForm]:
    """Two sizes that an operator finds unequal, made equal in the arguments that its operands were made of."""
    pairs = [(int(found[1]), int(found[2])) for pattern in _SIZES if (found := re.search(pattern, text))]
    pairs += _broadcast(text)
    shapes = [one.shape for one in failed.operands[:3]]
    if not pairs and len(shapes) > 1:
        pairs = [(a, b) for a, b in zip(reversed(shapes[0]), reversed(shapes[1]), strict=False) if a != b]
    for one, other in pairs[:3]:
        for got, wanted in ((one, other), (other, one)):
            for name in _made_of(failed):
                yield from _resized(form, name, got, wanted, rows=rows, tokens=tokens)
    for one, other in pairs[:3]:
        for operand in failed.operands:
            for got, wanted in ((one, other), (other, one)):
                if got in operand.shape:
                    yield from _added(form, operand, wanted - got, rows=rows, tokens=tokens)


def _broadcast(text: str) -> list[tuple[int, int]]:
    """The sizes that do not fit in torch's message about shapes on the meta device."""
    found = re.search(r"dimension of length (\d+) at (-?\d+).* torch.Size\(\[.*broadcastable to \[([\d, ]+)\]", text)
    if found is None:
        return []
    wanted, at = [int(size) for size in found[3].split(",")], int(found[2])
    return [(int(found[1]), wanted[at])] if -len(wanted) <= at < len(wanted) else []


def _resized(form: CallForm, name: str, got: int, wanted: int, *, rows: int, tokens: int) -> Iterator[CallForm]:
    old = _tensor(form, name)
    sizes = old.sizes(rows, tokens)
    if old.dims == (ROWS,) and got == rows and wanted % rows == 0 and wanted > rows:
        yield form.with_argument(name, replace(old, dims=(ROWS, wanted // rows)))
    words: dict[int, int | str] = {tokens: TOKENS, rows: ROWS}
    for at in reversed(range(len(sizes))):
        if sizes[at] == got and wanted > 0 and old.dims[at] != ROWS:
            yield form.with_argument(
                name, replace(old, dims=(*old.dims[:at], words.get(wanted, wanted), *old.dims[at + 1 :]))
            )
    for more in range(3) if len(sizes) > 3 else ():  # patches of an image, and tokens beside them
        factor = _factor(got - more, wanted - more)
        if factor > 1:
            yield form.with_argument(name, replace(old, dims=(*old.dims[:-2], *(size * factor for size in sizes[-2:]))))
    for at in reversed(range(len(sizes))):
        if old.dims[at] not in (ROWS, TOKENS) and got and sizes[at] != got and (sizes[at] * wanted) % got == 0:
            new = sizes[at] * wanted // got
            if 0 < new <= LARGEST:
                yield form.with_argument(name, replace(old, dims=(*old.dims[:at], new, *old.dims[at + 1 :])))


def _factor(got: int, wanted: int) -> int:
    """By how much each side of an image grows so that it has `wanted` patches in place of `got`; 0 where by no whole number."""
    if got < 1 or wanted < 1 or wanted % got:
        return 0
    side = isqrt(wanted // got)
    return side if side**2 == wanted // got else 0


def _folded(form: CallForm, text: str, failed: FailedOperator, *, rows: int, tokens: int) -> Iterator[CallForm]:
    """As many elements as a view takes: one dim of an argument larger, or smaller."""
    told = re.search(r"shape '\[([-\d, ]+)\]' is invalid for input of size (\d+)", text)
    if told is None:
        return
    sizes, got = [int(size) for size in told[1].split(",")], int(told[2])
    known = prod(size for size in sizes if size > 0)
    wanted = lcm(got, known) if -1 in sizes else known
    for name in _made_of(failed) if got and known else ():
        old = _tensor(form, name)
        for at in reversed(range(len(old.dims))):
            new, rest = divmod(old.sizes(rows, tokens)[at] * wanted, got)
            if old.dims[at] != ROWS and not rest and 0 < new <= LARGEST:
                yield form.with_argument(name, replace(old, dims=(*old.dims[:at], new, *old.dims[at + 1 :])))


def _other_grid(form: CallForm, text: str, failed: FailedOperator) -> Iterator[CallForm]:
    """Other numbers of frames, pixels and tokens, where a shape cannot be folded."""
    if not re.search(r"invalid for input|unflatten|divisible|split|does not divide|stretch|chunk", text):
        return
    for name in _made_of(failed):
        old = _tensor(form, name)
        if len(old.dims) > 4:
            for frames in (4, 1, 8, 9):
                yield form.with_argument(
                    name, replace(old, dims=tuple(frames if dim == FRAMES else dim for dim in old.dims))
                )
        if len(old.dims) > 3:
            for side in (32, 64):
                yield form.with_argument(name, replace(old, dims=(*old.dims[:-2], side, side)))
        if GRID in old.dims:
            for count in (PLACES[0] * PLACES[1] ** 2, 16, 64):
                yield form.with_argument(
                    name, replace(old, dims=tuple(count if dim == GRID else dim for dim in old.dims))
                )


def _made_of(failed: FailedOperator) -> list[str]:
    """The arguments behind an operator's operands, those of the fewest first."""
    found = sorted(failed.operands, key=lambda one: len(one.arguments))
    return list(dict.fromkeys(name for one in found for name in sorted(one.arguments)))


def _tensor(form: CallForm, name: str) -> TensorArgument:
    """A tensor of the form; `name.3` may be that of the fourth row of a list."""
    found = form.tensors()
    return found.get(name) or found.get(name.rpartition(".")[0]) or TensorArgument((ROWS, UNKNOWN_WIDTH))


def _floating(form: CallForm) -> list[str]:
    return [name for name, one in form.tensors().items() if one.dtype is torch.float32]
