"""The two torch modes that record a forward on the meta device.

A function mode keeps the composite ops that carry meaning (`linear`, `matmul`, attention, `einsum`, norms) whole, and answers
questions about data that meta tensors do not hold. A dispatch mode records everything else as aten ops, in-place ones as if
they returned a new value.
"""

from collections.abc import Callable, Mapping
from functools import cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from shardproof.planner.propagation.rules.random import draws
from shardproof.planner.propagation.rules.registry import ASSUMED
from shardproof.planner.tracing.meta_answers.data_answers import ANSWERS, ARGUMENTS, UNSEEN, unseen, with_numbers
from shardproof.planner.tracing.meta_answers.placeholders import with_counts, with_places
from shardproof.planner.tracing.meta_answers.result_forms import same_form
from shardproof.planner.tracing.own_backward import changes_what_is_saved
from shardproof.planner.tracing.recorder import SIZES, Recorder

WHOLE: Mapping[object, str] = {
    F.linear: "linear",
    torch.matmul: "matmul",
    Tensor.matmul: "matmul",
    Tensor.__matmul__: "matmul",
    Tensor.__rmatmul__: "rmatmul",
    torch.einsum: "einsum",
    F.scaled_dot_product_attention: "attention",
    F.layer_norm: "layer_norm",
    torch.layer_norm: "layer_norm",
    F.rms_norm: "rms_norm",
    F.group_norm: "group_norm",
    F.one_hot: "one_hot",
    Tensor.detach: "detach",
    torch.detach: "detach",
    torch.isfinite: "aten.isfinite",
    Tensor.isfinite: "aten.isfinite",
    Tensor.data.__get__: "detach",  # type: ignore[attr-defined]  # as torch.overrides has it
    F.embedding: "embedding",
    torch._grouped_mm: "aten._grouped_mm",
}
"""Torch functions recorded as one op."""


def _embedding_order(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    table = kwargs.get("weight", args[-1] if len(args) == 1 else args[1])
    return "embedding", (table, kwargs.get("input", args[0])), {}


def _einsum_operands(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    listed = len(args) == 2 and isinstance(args[1], list | tuple)
    return "einsum", (args[0], *args[1]) if listed else args, kwargs


REORDERED: Mapping[str, Callable[..., tuple[str, tuple[Any, ...], dict[str, Any]]]] = {
    "rmatmul": lambda args, kwargs: ("matmul", (args[1], args[0]), kwargs),
    "embedding": _embedding_order,
    "einsum": _einsum_operands,
}
"""Whole ops whose arguments are recorded in one order, however they were given."""

SAME = {"aten.clone", "aten.detach", "aten.alias", "aten.contiguous", "aten.lift_fresh", "aten.lift_fresh_copy"}
"""Ops whose result is their input: they leave no trace, for whether they run depends on strides."""

ALSO = {"aten._unsafe_view": "aten.view", "aten.reshape": "aten.view", "aten._reshape_alias": "aten.view"}
"""One name for ops among which torch chooses by strides."""


class Functions(TorchFunctionMode):
    """Keeps meaningful composites whole and answers for data that is not there."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if recorder.paused:
            return func(*args, **kwargs)
        if _in_derivative():
            raise NotImplementedError("a derivative that torch.func takes inside the forward is not recorded")
        if changes_what_is_saved(recorder):
            raise NotImplementedError("what saved_tensors_hooks give the backward in place of a value is not recorded")
        if recorder.whole and func in SIZES and (size := recorder.size_of(args[0])) is not None:
            return SIZES[func](size, *args[1:], **kwargs)
        args, kwargs = tree_map(_here, args) if func is Tensor.to else args, {k: _here(v) for k, v in kwargs.items()}
        if (answer := ANSWERS.get(func)) is not None:
            given = answer(recorder, func, args, kwargs)
            if given is not NotImplemented:
                return given
        args = ARGUMENTS[func](recorder, args, kwargs) if func in ARGUMENTS else args
        target = WHOLE.get(func)
        return self._piecewise(func, args, kwargs) if target is None else self._as_one(target, func, args, kwargs)

    def _piecewise(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function whose ops are recorded one by one."""
        recorder = self.recorder
        if func in (Tensor.view, Tensor.reshape):
            if id(recorder.running) in recorder.distributed:
                args = _in_parts(args)
            elif recorder.unfixed:
                args = self._unfixed(args)
        try:
            result = func(*args, **kwargs)
        except RuntimeError as error:
            given = with_numbers(recorder, error, args, kwargs) or _on_one_device(recorder, args, kwargs)
            if given is None:
                raise
            result = func(*given[0], **given[1])
        return with_counts(func, args, with_places(func, args, result))

    def _as_one(self, target: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function that is recorded as one op."""
        recorder = self.recorder
        with recorder.silent():
            args, kwargs = _to_meta(recorder, args, kwargs)
        with recorder.attempt(target, args, kwargs):
            result = same_form(SHAPED.get(target, func), args, kwargs)
        if target == "attention" and (kwargs.get("dropout_p") or args[4:5] not in ((), (0.0,), (0,))):
            recorder.note("dropout: which elements each rank drops is not compared")
        target, args, kwargs = REORDERED[target](args, kwargs) if target in REORDERED else (target, args, kwargs)
        recorder.record(target, args, kwargs, result)
        if target == "detach":
            recorder.note_view(target, args, kwargs, result)
        return with_counts(func, args, result)

    def _unfixed(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A view as it would be with one size left open: what a patch suggestion tries."""
        recorder = self.recorder
        here = recorder.sources.here(recorder.running)
        sizes = _sizes(args)
        dim = recorder.unfixed.get(here) if here is not None else None
        if dim is None or not -len(sizes) <= dim < 0 or sizes[dim] == -1 or not all(type(n) is int for n in sizes):
            return args
        if -1 in sizes:
            open_ = sizes.index(-1)
            sizes[open_] = args[0].shape[open_]
        sizes[dim] = -1
        return (args[0], *sizes)


def _in_derivative() -> bool:
    """Whether `torch.func` is taking a derivative, whose ops are not those that the code calls; `vmap` is none."""
    transform = torch._C._functorch.peek_interpreter_stack()
    kinds = torch._C._functorch.TransformType
    return transform is not None and transform.key() in (kinds.Grad, kinds.Jvp)


def _sizes(args: tuple[Any, ...]) -> list[Any]:
    """What a view is asked for, given as one argument or as several."""
    return list(args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:])


def _in_parts(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A view of a distributed tensor is asked for by its whole sizes: on a rank the last dim that can is smaller."""
    sizes, elements = _sizes(args), args[0].numel()
    if not all(type(size) is int and size > 0 for size in sizes) or prod(sizes) == elements:
        return args
    for dim in reversed(range(len(sizes))):
        rest = prod(sizes[:dim]) * prod(sizes[dim + 1 :])
        if elements % rest == 0:
            return (args[0], *sizes[:dim], elements // rest, *sizes[dim + 1 :])
    return args


class Dispatch(TorchDispatchMode):
    """Records aten ops; in-place ones rebind the tensor, and the tensor that it is a view of, to new values."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if recorder.paused:
            return func(*args, **kwargs)
        target = f"{func.namespace}.{func._schema.name.rpartition('::')[2]}"
        target = ALSO.get(target, target)
        args, kwargs = _to_meta(recorder, *_large_to_meta(recorder, func, target, args, kwargs))
        with recorder.attempt(target, args, kwargs):
            result = self._result(func, target, args, kwargs)
        if target == "aten.slice" and (turns := _in_turns(*args)) is not None:
            return self._taken_in_turns(args[0], result, *turns)
        if target == "aten.unfold" and (dim := _side_by_side(*args)) is not None:
            return self._windows_side_by_side(args[0], result, dim, args[3])
        if target == "aten._to_copy" and isinstance(result, Tensor) and _keeps_dtype(args[0], result):
            target = "aten.clone"
        if target in SAME and isinstance(result, Tensor):
            recorder.alias(result, args[0])
            return result
        written, kwargs = _written(func, args, kwargs)
        if written:
            recorder.note_write(written[0])
        if target == "aten.native_dropout":
            recorder.note("dropout: which elements each rank drops is not compared")
        if draws(target) and kwargs.get("generator") is None:
            recorder.note("random numbers: every rank is taken to draw the same ones, from one seed")
        if target in ASSUMED:
            recorder.note(ASSUMED[target])
        recorder.record(target, args, kwargs, result)
        if written:
            self._mutate(written[0], result)
        elif any(out.alias_info is not None for out in func._schema.returns):
            recorder.note_view(target, args, kwargs, result)
        return result

    def _taken_in_turns(self, tensor: Tensor, result: Tensor, dim: int, step: int, start: int) -> Tensor:
        """Every n-th element of a dim is one of n, once the dim is seen as so many groups: a shard of groups keeps them whole."""
        recorder = self.recorder
        shape = (*tensor.shape[:dim], tensor.shape[dim] // step, step, *tensor.shape[dim + 1 :])
        with recorder.silent():
            grouped = tensor.new_empty(shape)
        recorder.record("aten.view", (tensor, shape), {}, grouped)
        recorder.record("aten.select", (grouped, dim + 1, start), {}, result)
        recorder.note_view("", (tensor,), {}, result)
        return result

    def _windows_side_by_side(self, tensor: Tensor, result: Tensor, dim: int, size: int) -> Tensor:
        """Windows that do not overlap and leave nothing out are groups of a dim, with the elements of each in a last dim."""
        recorder = self.recorder
        shape = (*tensor.shape[:dim], tensor.shape[dim] // size, size, *tensor.shape[dim + 1 :])
        order = (*range(dim + 1), *range(dim + 2, tensor.dim() + 1), dim + 1)
        with recorder.silent():
            grouped = tensor.new_empty(shape)
        recorder.record("aten.view", (tensor, shape), {}, grouped)
        recorder.record("aten.permute", (grouped, order), {}, result)
        recorder.note_view("", (tensor,), {}, result)
        return result

    def _result(self, func: Any, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if unseen(target, args):
            return UNSEEN[target](*args, **kwargs)
        return same_form(func, args, kwargs) if _makes_new(func) else func(*args, **kwargs)

    def _mutate(self, tensor: Tensor, result: object) -> None:
        recorder = self.recorder
        if not (isinstance(result, Tensor) and result is tensor):
            recorder.bind(tensor)
        recorder.outdate_views(tensor, tensor)
        while (base := recorder.view_of.get(id(tensor))) is not None:
            recorder.record("view_write", (base, tensor), {}, base)
            recorder.outdate_views(base, tensor)
            tensor = base


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    """The tensors that an op writes to, and its keyword arguments without those, which only say where a result goes (`out=`)."""
    slots = [slot for slot in func._schema.arguments if slot.alias_info is not None and slot.alias_info.is_write]
    if not slots:
        return [], kwargs
    names = {slot.name for slot in slots}
    first = [value for value, slot in zip(args, func._schema.arguments, strict=False) if slot.name in names]
    given = (*first, *(value for name, value in kwargs.items() if name in names))
    rest = {name: value for name, value in kwargs.items() if name not in names}
    return [value for value in given if isinstance(value, Tensor)], rest


def _keeps_dtype(given: object, result: Tensor) -> bool:
    """Whether a copy has the dtype of what it is made of; `vmap` makes some of numbers."""
    return isinstance(given, Tensor) and given.dtype == result.dtype


@cache
def _makes_new(func: Any) -> bool:
    """Whether an op neither writes to an argument nor returns a view of one."""
    return all(slot.alias_info is None for slot in (*func._schema.arguments, *func._schema.returns))


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        raise ValueError("one_hot without num_classes depends on data")
    return tensor.new_empty((*tensor.shape, num_classes), dtype=torch.long)


def _embedding(input: Tensor, weight: Tensor, *_: object, **__: object) -> Tensor:
    """By shapes alone: a rank's part of a table has fewer rows than its padding index says."""
    return weight.new_empty((*input.shape, *weight.shape[1:]))


def _grouped_mm(rows: Tensor, matrices: Tensor, **_: object) -> Tensor:
    """The shape of what the kernel makes, which takes nothing but bfloat16 on meta."""
    if rows.ndim != 2 or matrices.ndim != 3 or rows.shape[1] != matrices.shape[1]:
        raise RuntimeError(f"grouped_mm of {tuple(rows.shape)} and {tuple(matrices.shape)}: sizes do not fit")
    return rows.new_empty((rows.shape[0], matrices.shape[2]))


SHAPED: Mapping[str, Callable[..., Any]] = {
    "one_hot": _one_hot,
    "embedding": _embedding,
    "aten._grouped_mm": _grouped_mm,
}
"""Whole ops of which only the result's shape is asked."""


def _here(value: Any) -> Any:
    """A GPU that modeling code names by itself (`.to("cuda:0")`) is the meta device here."""
    names_a_gpu = isinstance(value, str | torch.device) and str(value).partition(":")[0] == "cuda"
    return torch.device("meta") if names_a_gpu else value


def _to_meta(
    recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Where meta and real tensors meet, all become meta; nothing moves off the meta device."""
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    if not any(tensor.is_meta for tensor in tensors):
        return args, kwargs
    if not all(tensor.is_meta for tensor in tensors):
        args, kwargs = tree_map_only(Tensor, lambda tensor: _moved(recorder, tensor), (args, kwargs))
    if isinstance(kwargs.get("device"), torch.device):
        kwargs = {**kwargs, "device": torch.device("meta")}
    return args, kwargs


def _on_one_device(
    recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with all tensors on the meta device; None where they are on one device already."""
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    return _to_meta(recorder, args, kwargs) if len({tensor.is_meta for tensor in tensors}) > 1 else None


def _moved(recorder: Recorder, tensor: Tensor) -> Tensor:
    """The tensor's form on the meta device: the same value to the recorder."""
    if tensor.is_meta:
        return tensor
    made = tensor.to("meta")
    recorder.alias(made, tensor)
    return made


MUCH = 1 << 20
"""Elements of a constant that a forward makes (a mask for the longest text): above it, only its form is kept."""
_MADE = frozenset({"aten.zeros", "aten.ones", "aten.full", "aten.empty"})


def _large_to_meta(
    recorder: Recorder, func: Any, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What works on a large constant works on its form, so that nobody computes gigabytes for a trace."""
    if target in _MADE and prod(args[0]) > MUCH:
        return args, {**kwargs, "device": torch.device("meta")}
    given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    if _makes_new(func) and any(tensor.numel() > MUCH and not tensor.is_meta for tensor in given):
        args, kwargs = tree_map_only(Tensor, lambda tensor: _moved(recorder, tensor), (args, kwargs))
    return args, kwargs


def _side_by_side(tensor: Tensor, dim: int, size: int, step: int) -> int | None:
    """The dim of windows that lie side by side and cover all of it; None for any others."""
    dim = dim % max(tensor.dim(), 1)
    return dim if tensor.dim() and step == size and tensor.shape[dim] % size == 0 else None


def _in_turns(
    tensor: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> tuple[int, int, int] | None:
    """The dim, the step and the start of a slice that takes every n-th of groups of n; None for any other slice."""
    dim, size, first = dim % tensor.dim(), tensor.shape[dim], start or 0
    whole = size % step == 0 and 0 <= first < step and (end is None or end >= size)
    return (dim, step, first) if step > 1 and whole else None
