"""Placeholder results on meta tensors, where an operator's result depends on data that is not there.

Places: `nonzero`, `argwhere` and boolean masks are taken to find three places: the first, one in the middle, and the last. A loop
over the experts that were hit then runs both ends of the list, where code often has a branch of its own: experts that compute
nothing, or one that is shared.

Counts: nobody knows how many tokens an expert gets, but often the sum is known: as many tokens are given to experts as there are
indices. Where code asks for the numbers, they are answered in equal parts of that sum, so that every expert runs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from operator import eq, ge, gt, le, lt, ne
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shardproof.planner.inputs.run_modes import RunMode

FOUND = 3
"""How many elements a data-dependent op (`nonzero`, a boolean mask) is taken to find."""

_first_only: "WeakSet[nn.Module]" = WeakSet()
_ends: ContextVar[bool] = ContextVar("ends", default=True)
_masked: "WeakKeyDictionary[nn.Module, dict[RunMode, int]]" = WeakKeyDictionary()
_many: ContextVar[int] = ContextVar("many", default=FOUND)


def masks_find() -> int:
    """How many elements a boolean mask is taken to find in the forward that runs."""
    return _many.get()


def masks_find_as_many(model: nn.Module, mode: RunMode, count: int) -> bool:
    """Remember that this model's masks find as many elements in a mode as it has features to put there; False where a number
    was known already.
    """
    counts = _masked.setdefault(model, {})
    known = mode in counts
    counts.setdefault(mode, count)
    return not known


def masks_find_a_few(model: nn.Module, mode: RunMode) -> None:
    """Forget it again: with that number the forward failed too."""
    _masked.get(model, {}).pop(mode, None)


def mask_count(model: nn.Module, mode: RunMode) -> int | None:
    """The number that was remembered for a model in a mode."""
    return _masked.get(model, {}).get(mode)


def search_first_only(model: nn.Module) -> bool:
    """Remember that this model's search cannot find the last place; False where that was known already."""
    known = model in _first_only
    _first_only.add(model)
    return not known


@contextmanager
def placing_search_results(model: nn.Module, mode: RunMode) -> Iterator[None]:
    """Where searches find their places, for the time of one forward of a model."""
    token, many = _ends.set(model not in _first_only), _many.set(mask_count(model, mode) or FOUND)
    try:
        yield
    finally:
        _ends.reset(token)
        _many.reset(many)


Places = int | tuple["Places", ...]


def with_places(func: Callable[..., Any], args: tuple[Any, ...], result: Any) -> Any:
    """The result of a call, marked with the places that it stands for: of a search, or of an input that is marked."""
    if func in SEARCHES and isinstance(result, Tensor):
        shape = args[0].shape
        return _marked(
            result, tuple(tuple(_place(row, len(result), size) for size in shape) for row in range(len(result)))
        )
    if func in JOINS and args and isinstance(result, Tensor):
        return _joined(args[0], result)
    places = getattr(args[0], "_places", None) if args else None
    if isinstance(places, int) and func in COMPARES and isinstance(args[1], int):
        return _marked(result, int(COMPARES[func](places, args[1])))
    if func is F.pad and isinstance(places, tuple) and result.dim() == 1 and list(args[1])[1:] == [0]:
        return _marked(result, (*(0 for _ in range(args[1][0])), *places))
    return TAKES[func](places, args, result) if isinstance(places, tuple) and func in TAKES else result


def place_of(tensor: Tensor) -> int:
    """The one place that a tensor of one element stands for; 0 where it comes from no search."""
    places: Places = getattr(tensor, "_places", 0)
    while isinstance(places, tuple):
        places = places[0] if len(places) == 1 else 0
    return places


def _place(row: int, rows: int, size: int) -> int:
    return row * (size - 1) // max(rows - 1, 1) if _ends.get() else 0


def _marked(tensor: Tensor, places: Places) -> Tensor:
    tensor._places = places  # type: ignore[attr-defined]  # a mark of our own
    return tensor


def _each(places: tuple[Places, ...], args: tuple[Any, ...], result: Any) -> Any:
    if len(args) > 1 and args[1] != 0:
        return result
    return tuple(_marked(tensor, place) for tensor, place in zip(result, places, strict=True))


def _iterated(places: tuple[Places, ...], args: tuple[Any, ...], result: Any) -> Iterator[Any]:
    return iter(_each(places, args[:1], tuple(result)))


def _same(places: tuple[Places, ...], _: tuple[Any, ...], result: Any) -> Any:
    return _marked(result, places)


def _running(places: tuple[Places, ...], _: tuple[Any, ...], result: Any) -> Any:
    numbers = [place for place in places if isinstance(place, int)]
    return _marked(result, tuple(accumulate(numbers))) if len(numbers) == len(places) else result


def _joined(parts: Any, result: Tensor) -> Tensor:
    """A row of numbers some of which are known: the counts of all experts, or a zero and where the tokens of each end."""
    if result.dim() != 1 or not any(hasattr(part, "_places") for part in parts):
        return result
    found: tuple[Places, ...] = ()
    for part in parts:
        places = getattr(part, "_places", (0,) * part.numel())
        found += places if isinstance(places, tuple) else (places,)
    return _marked(result, found)


def _sliced(places: tuple[Places, ...], args: tuple[Any, ...], result: Any) -> Any:
    match args[1]:
        case int() | slice() as taken:
            return _marked(result, places[taken])
    return result


JOINS = frozenset({torch.cat, torch.concat, torch.stack})
COMPARES: Mapping[object, Callable[[int, int], bool]] = {
    getattr(owner, name): compare
    for compare in (eq, ne, gt, ge, lt, le)
    for owner, name in (
        (Tensor, f"__{compare.__name__}__"),
        (Tensor, compare.__name__),
        (torch, compare.__name__),
    )
}
SEARCHES = frozenset({Tensor.nonzero, torch.nonzero, torch.argwhere, Tensor.argwhere})
TAKES: Mapping[object, Callable[[Any, tuple[Any, ...], Any], Any]] = {
    Tensor.unbind: _each,
    torch.unbind: _each,
    Tensor.__iter__: _iterated,
    Tensor.__getitem__: _sliced,
    Tensor.squeeze: _same,
    torch.squeeze: _same,
    Tensor.flatten: _same,
    Tensor.view: _same,
    Tensor.reshape: _same,
    Tensor.cpu: _same,
    Tensor.long: _same,
    Tensor.int: _same,
    Tensor.to: _same,
    Tensor.detach: _same,
    Tensor.cumsum: _running,
    torch.cumsum: _running,
}
"""How the places follow the tensor, for the ways in which modeling code takes a search's result apart."""


KEEP = frozenset(
    {
        *(Tensor.sum, torch.sum, Tensor.view, Tensor.reshape, Tensor.flatten, Tensor.permute, Tensor.transpose),
        *(Tensor.to, Tensor.long, Tensor.int, Tensor.type, Tensor.detach, Tensor.clone, Tensor.contiguous),
    }
)
"""Functions whose result counts the same things."""
COUNTS = frozenset({F.one_hot, torch.bincount, Tensor.bincount})
"""Functions whose result sums up to the number of their elements."""
SUMS = frozenset({Tensor.sum, torch.sum, Tensor.count_nonzero, torch.count_nonzero})
"""Functions that count where a mask is true: as often as a search finds something, or once for each of what is compared."""
MARKS = frozenset({Tensor.scatter_, Tensor.scatter, torch.scatter})
"""Functions that put one number for every index: where that is 1, they count."""


def with_counts(func: Callable[..., Any], args: tuple[Any, ...], result: Any) -> Any:
    """The result of a call, marked with the sum of what it counts, if it counts anything."""
    if not isinstance(result, Tensor):
        return result
    if func in COUNTS:
        total = args[0].numel()
    elif func in MARKS and len(args) > 3 and isinstance(args[2], Tensor) and (args[3] == 1) is True:
        total = args[2].numel()
    elif func in SUMS and args[0].dtype == torch.bool:
        if result.dim() == 0:
            return _marked(result, min(FOUND, args[0].numel()))
        total = args[0].numel() // result.numel() if result.numel() else None
    else:
        total = getattr(args[0], "_counts", None) if func in KEEP and args else None
    if total is not None:
        result._counts = total  # type: ignore[attr-defined]  # a mark of our own
        if result.dim() == 1 and len(result):
            _marked(result, _equal_parts(total, len(result)))
    return result


def numbers_of(tensor: Tensor) -> list[int] | None:
    """The numbers that a row of places or of counts stands for; None of any other tensor."""
    places: Places = getattr(tensor, "_places", 0)
    if not isinstance(places, tuple) or tensor.dim() != 1:
        return None
    return [place for place in places if isinstance(place, int)]


def _equal_parts(total: int, count: int) -> tuple[int, ...]:
    least = total // count
    return (*(least for _ in range(count - 1)), total - least * (count - 1))
