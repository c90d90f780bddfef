"""What is answered where modeling code asks a meta tensor for data that is not there, or makes a tensor of numbers.

Every number that Python reads off a tensor is an op of its own (`read`): it decides what the program does, so a rank has to hold
all of that tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from math import isinf
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from shardproof.planner.inputs.meta_types import meta_type
from shardproof.planner.ir.graph import BRANCH, READ, Op
from shardproof.planner.tracing.meta_answers.placeholders import FOUND, masks_find, numbers_of, place_of
from shardproof.planner.tracing.own_backward import hooked
from shardproof.planner.tracing.recorder import Recorder

FILLS = frozenset({torch.full, torch.full_like, Tensor.new_full})
"""Functions that ask a tensor that is given as the value to fill with for its number."""


def _filled(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> Tensor:
    """The same tensor, made from the one that gives the number."""
    like = args[0] if isinstance(args[0], Tensor) else None
    size = args[1] if func is Tensor.new_full else kwargs.get("size", args[0]) if like is None else like.shape
    dtype = kwargs.get("dtype") or (value.dtype if like is None else like.dtype)
    return value.to(dtype).expand(size).clone()


MADE = frozenset({torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor})
"""Functions that make a tensor from numbers: what they are is part of the program, for they may be read off a size."""
_TOLD = 64
"""Numbers of a constant that are kept as they are; of more, a digest."""


def _given(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a tensor is made from."""
    position = int(func is Tensor.new_tensor)
    return kwargs.get("data", args[position] if len(args) > position else None)


def _data(given: Any) -> tuple[object, ...] | None:
    """The numbers that a constant is made from, or a digest of many; None where it is made from another tensor."""
    if any(isinstance(leaf, Tensor) for leaf in tree_flatten(given)[0]):
        return None
    numbers = np.asarray(given)
    if numbers.dtype == object:
        return None
    flat = numbers.ravel()
    told = (str(number) if number != number else number for number in flat.tolist())  # NaN equals nothing
    return tuple(told) if flat.size <= _TOLD else (sha256(flat.tobytes()).hexdigest(),)


def _parts(tensor: Tensor, sizes: Sequence[int], dim: int) -> Sequence[int]:
    """Part sizes that were read off data are all zero here: parts of equal size, the last with the rest, stand for them."""
    total = tensor.shape[dim]
    if not sizes or any(sizes):
        return sizes
    return [total // len(sizes)] * (len(sizes) - 1) + [total - total // len(sizes) * (len(sizes) - 1)]


def _known_index(index: Tensor) -> Tensor | int:
    """A lone number on the meta device, as an index, would be asked for its value: take the first element."""
    return 0 if index.is_meta and index.dim() == 0 and index.dtype != torch.bool else index


def _nonzero(tensor: Tensor, *_: object) -> Tensor:
    return tensor.new_empty((min(masks_find(), max(tensor.numel(), 1)), tensor.dim()), dtype=torch.long)


def _masked_index(tensor: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    given: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            given += [index.new_empty((masks_find(),), dtype=torch.long)] * index.dim()
        else:
            given.append(index)
    found: Tensor = torch.ops.aten.index.Tensor(tensor, given)
    return found


def _masked_select(tensor: Tensor, *_: object) -> Tensor:
    return tensor.new_empty((FOUND,))


def _bincount(tensor: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """As many counts as the code asks for at least: what is counted are numbers of so many things."""
    return tensor.new_empty((minlength or FOUND,), dtype=torch.long if weights is None else weights.dtype)


def _unique(tensor: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor, Tensor]:
    """The values, for each element the place of its value, and the counts."""
    found = min(FOUND, max(tensor.numel(), 1))
    places = tensor.new_empty(tensor.shape, dtype=torch.long)
    return tensor.new_empty((found,)), places, tensor.new_empty((found,), dtype=torch.long)


UNSEEN: Mapping[str, Callable[..., Any]] = {
    "aten.nonzero": _nonzero,
    "aten.index": _masked_index,
    "aten.masked_select": _masked_select,
    "aten.bincount": _bincount,
    "aten._unique2": _unique,
}
"""What data-dependent aten ops return on meta tensors."""


def unseen(target: str, args: tuple[Any, ...]) -> bool:
    """Whether what this op gives depends on data that is not there."""
    if target not in UNSEEN or not args[0].is_meta:
        return False
    return target != "aten.index" or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _zero(tensor: Tensor) -> Any:
    return False if tensor.dtype == torch.bool else 0.0 if tensor.is_floating_point() else place_of(tensor)


def _numbers(tensor: Tensor) -> Any:
    return numbers_of(tensor) or _zeros(tensor)


def _zeros(tensor: Tensor) -> Any:
    value = _zero(tensor)
    for size in reversed(tensor.shape):
        value = [value] * size
    return value


READS: Mapping[object, Callable[[Tensor], Any]] = {
    Tensor.item: _zero,
    Tensor.__contains__: lambda tensor: False,
    Tensor.__bool__: lambda tensor: place_of(tensor) != 0,
    Tensor.__int__: place_of,
    Tensor.__index__: place_of,
    Tensor.__float__: lambda tensor: 0.0,
    Tensor.__format__: lambda tensor: str(_zeros(tensor)),  # an expert is found by the name that its number is part of
    Tensor.tolist: _numbers,
    Tensor.numpy: lambda tensor: torch.tensor(_numbers(tensor), dtype=tensor.dtype).numpy(),
}
"""What is answered where modeling code reads numbers off a meta tensor."""

REPRESENTATIVE = "numbers are read off data here; one representative path was traced"


def _read(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not (args and isinstance(args[0], Tensor) and args[0].is_meta):
        return NotImplemented
    branches = func is Tensor.__bool__
    asks = func in (Tensor.__bool__, Tensor.item) and args[0].dtype == torch.bool
    if asks and (guard := _of_finite_values(recorder, args[0])) is not None:
        recorder.note("values are taken to be finite: what code does about NaN and infinity is not traced")
        return guard
    recorder.record(READ, (args[0], *((BRANCH,) if branches else ())), {}, ())
    answer = READS[func](args[0])
    if branches:
        return recorder.branch(answer)
    recorder.note(REPRESENTATIVE)
    return answer


_FINITE = {"aten.isnan": False, "aten.isinf": False, "aten.isfinite": True}
"""What these say of every finite number."""
_NOT = frozenset(("aten.logical_not", "aten.bitwise_not"))
_KEEPS = frozenset(("aten.any", "aten.all", "aten.sum", "aten._to_copy", "aten.view", "aten.select", *_FINITE))
_BACK = 64
"""Ops before a branch among which its condition is looked for."""


def _of_finite_values(recorder: Recorder, condition: Tensor) -> bool | None:
    """What a condition is where all values are finite, if it asks for nothing else; else None."""
    wanted, negated = recorder.number(condition), False
    for op in reversed(recorder.ops[-_BACK:]):
        if wanted not in op.outputs:
            continue
        if op.target in _FINITE:
            return None if _may_hold_infinity(recorder, op) else _FINITE[op.target] ^ negated
        if op.target not in _NOT | _KEEPS:
            return None
        negated ^= op.target in _NOT
        wanted = op.inputs[0]
    return None


def _may_hold_infinity(recorder: Recorder, asked: Op) -> bool:
    """Whether code asks for infinity where it has put one itself, as into a mask: that branch is followed to both sides."""
    if asked.target == "aten.isnan":
        return False
    wanted = set(asked.inputs)
    for op in reversed(recorder.ops):
        if not wanted.isdisjoint(op.outputs):
            wanted.update(op.inputs)
            given = tree_flatten((op.args, [value for _, value in op.kwargs]))[0]
            if any(isinstance(one, float) and isinf(one) for one in given):
                return True
    return False


_ASKED = "item() cannot be called on meta tensors"
"""What torch raises where a tensor on the meta device stands for a number, such as a size."""


def with_numbers(
    recorder: Recorder, error: RuntimeError, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with as many as a search finds in place of whole numbers on the meta device, where torch asked for them;
    None where it did not.
    """
    lone = [one for one in tree_flatten((args, kwargs))[0] if _is_lone(one)] if _ASKED in str(error) else []
    if not lone:
        return None
    for one in lone:
        recorder.record(READ, (one,), {}, ())
    recorder.note(REPRESENTATIVE)
    found: tuple[tuple[Any, ...], dict[str, Any]]
    found = tree_map(lambda one: (place_of(one) or FOUND) if _is_lone(one) else one, (args, kwargs))
    return found


def _is_lone(value: object) -> bool:
    """A whole number on the meta device."""
    return isinstance(value, Tensor) and value.is_meta and value.dim() == 0 and not value.is_floating_point()


def _repeats(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """`repeat_interleave` as often as real numbers say, which torch does not sum up for the meta device; of numbers that are not
    there, as many as a search finds.
    """
    times = kwargs.get("repeats", args[1] if len(args) > 1 else args[0])
    if not isinstance(times, Tensor) or not (args[0].is_meta or times.is_meta) or kwargs.get("output_size") is not None:
        return args
    dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
    if times.is_meta:
        kwargs["output_size"] = FOUND
    elif times.numel() > 1:
        kwargs["output_size"] = int(times.sum())
    else:
        kwargs["output_size"] = int(times) * (args[0].numel() if dim is None else args[0].shape[dim])
    return args


def _stays(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A meta tensor stays on the meta device."""
    return args[0] if args and isinstance(args[0], Tensor) and args[0].is_meta else NotImplemented


def _fill(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = kwargs.get("fill_value", args[-1] if args else None)
    return _filled(func, args, kwargs, value) if isinstance(value, Tensor) else NotImplemented


def _make(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = _given(func, args, kwargs)
    data = _data(given)
    if data is None:
        return _of_tensors(recorder, given, kwargs.get("dtype"))
    with recorder.silent():
        made = func(*args, **kwargs)
    recorder.record("constant", (data,), {}, made)
    return made


def _of_tensors(recorder: Recorder, given: Any, dtype: torch.dtype | None) -> Any:
    """A tensor made from a list of tensors of one number on the meta device, which torch would ask for their data: the stack of
    them.
    """
    leaves = tree_flatten(given)[0]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    numbers = all(isinstance(leaf, Tensor | int | float) for leaf in leaves)
    if not isinstance(given, list | tuple) or not numbers or not all(one.is_meta and one.dim() == 0 for one in tensors):
        return NotImplemented
    wanted = dtype or tensors[0].dtype

    def stacked(part: Any) -> Tensor:
        if isinstance(part, Tensor):
            return part.to(wanted)
        if isinstance(part, list | tuple):
            return torch.stack([stacked(one) for one in part])
        made: Tensor = _make(recorder, torch.tensor, (part,), {"dtype": wanted, "device": "meta"})
        return made

    return stacked(given)


def _dropout(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """Dropout in training: one op, element by element. Which elements are dropped is a matter of seeds, and an assumption."""
    names = ("input", "p", "training" if func is F.dropout else "train", "inplace")
    given = {"p": 0.5, names[2]: True, "inplace": False} | dict(zip(names, args, strict=False)) | kwargs
    value = given["input"]
    if not (isinstance(value, Tensor) and value.is_meta and given[names[2]] and given["p"]) or given["inplace"]:
        return NotImplemented
    with recorder.silent():
        made = torch.empty_like(value)
    recorder.note("dropout: which elements each rank drops is not compared")
    recorder.record("dropout", (value, given["p"]), {}, made)
    return made


def _gated(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A gated linear unit, as what it is made of: one half times the sigmoid of the other."""
    given = {"dim": -1} | dict(zip(("input", "dim"), args, strict=False)) | kwargs
    value, gate = given["input"].chunk(2, given["dim"])
    return value * gate.sigmoid()


def _requires_grad(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return recorder.has_gradient(args[0]) if args[0].is_meta else NotImplemented


def _register_hook(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return (
        hooked(recorder, args[0], args[1] if len(args) > 1 else kwargs["hook"]) if args[0].is_meta else NotImplemented
    )


ANSWERS: Mapping[object, Callable[[Recorder, Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    **dict.fromkeys(READS, _read),
    **dict.fromkeys((Tensor.cpu, Tensor.cuda), _stays),
    **dict.fromkeys(FILLS, _fill),
    **dict.fromkeys(MADE, _make),
    Tensor.requires_grad.__get__: _requires_grad,  # type: ignore[attr-defined]  # as torch.overrides has it
    Tensor.register_hook: _register_hook,
    **dict.fromkeys((F.dropout, torch.dropout), _dropout),
    F.glu: _gated,
    Tensor.type: lambda recorder, func, args, kwargs: meta_type(args, kwargs),
}
"""Functions that are answered here; `NotImplemented` where the call is an ordinary one after all."""


def _split_sizes(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    if len(args) < 2 or not isinstance(args[1], list | tuple) or not args[0].is_meta:
        return args
    return (args[0], _parts(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("dim", 0)), *args[2:])


def _index(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """An index: a lone number on the meta device is read, as a bound of a slice too, and a list of numbers is a constant, which
    torch would make unseen.
    """
    if not (isinstance(args[0], Tensor) and args[0].is_meta):
        return args

    def known(index: Any) -> Any:
        if isinstance(index, tuple):
            return tuple(map(known, index))
        if isinstance(index, slice):
            return slice(_bound(recorder, index.start, 0), _bound(recorder, index.stop, FOUND), index.step)
        if isinstance(index, list | np.ndarray) and not any(
            isinstance(leaf, Tensor) for leaf in tree_flatten(index)[0]
        ):
            made = _make(recorder, torch.tensor, (index,), {})
            return index if made is NotImplemented else made
        found = _known_index(index) if isinstance(index, Tensor) else index
        if found is not index:
            recorder.record(READ, (index,), {}, ())
        return found

    return (args[0], known(args[1]), *args[2:])


def _bound(recorder: Recorder, given: Any, unknown: int) -> Any:
    """A bound of a slice; a number on the meta device is read, and is `unknown` where it stands for no place."""
    if not _is_lone(given):
        return given
    recorder.record(READ, (given,), {}, ())
    recorder.note(REPRESENTATIVE)
    return place_of(given) or unknown


ARGUMENTS: Mapping[object, Callable[[Recorder, tuple[Any, ...], dict[str, Any]], tuple[Any, ...]]] = {
    **dict.fromkeys((Tensor.split, torch.split, torch.functional.split), _split_sizes),
    **dict.fromkeys((Tensor.__getitem__, Tensor.__setitem__), _index),
    **dict.fromkeys((Tensor.repeat_interleave, torch.repeat_interleave), _repeats),
}
"""Functions whose arguments may be numbers that were read off data: with representative ones in their place."""
