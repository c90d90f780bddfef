"""Edits of a model's inputs that the exception of its forward asks for: an argument more, another size, another number of dims.

An exception names arguments ("You have to specify pixel_values") or sizes ("got [480, 256] X [160, 1024]"), and its traceback
shows which arguments were None where it was raised. Every edit is a guess: whether the forward accepts it is what decides.
"""

import inspect
import linecache
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isqrt, prod
from types import TracebackType
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from shardproof.planner.inputs.documented import Documented, Sized, documented, documented_argument, tensor_arguments
from shardproof.planner.inputs.media import number, part_with

Named: TypeAlias = Mapping[str, Tensor]

ELEMENTS, REAL_ELEMENTS = 2**22, 2**19
"""The most elements of an input that is made from a message, in a trace and in a run, which makes it of real numbers."""
REAL_POSITIONS = 2048
"""The most positions of a sequence in a run."""
LARGEST = 16384
"""The largest size of a dim that a message is believed to ask for."""


class Counts(Protocol):
    """The sizes of a batch (`planner.inputs.example.Sizes`)."""

    @property
    def rows(self) -> int:
        """The batch size."""

    @property
    def length(self) -> int:
        """Tokens of a row."""

    @property
    def targets(self) -> int:
        """Tokens of a decoder's row."""


@dataclass(frozen=True, slots=True)
class InputEdit:
    """Another shape for the argument `name`: `dims` are numbers or words; None where the docstring gives its shape.

    `filled`: the argument holds numbers also in a trace, because the code reads them.
    """

    name: str
    dims: tuple[int | str, ...] | None = None
    filled: bool = False

    def apply(self, model: nn.Module, given: Named, counts: Counts) -> dict[str, Tensor]:
        """The inputs with this edit."""
        old = given.get(self.name)
        if self.dims is None:
            new = old if old is not None else _documented(model, self.name, given, counts)
        else:
            sizes = _sizes(model, self.dims, counts)
            new = torch.empty(sizes, dtype=torch.float32 if old is None else old.dtype, device="meta")
        if new.numel() > ELEMENTS:
            raise RuntimeError(f"{self.name} would have {new.numel()} elements")
        if self.filled and new.is_meta:
            new = torch.ones(new.shape, dtype=new.dtype)
        return {**given, **(_following(model, given, self.name, new) if old is not None else {}), self.name: new}


def _following(model: nn.Module, given: Named, name: str, new: Tensor) -> dict[str, Tensor]:
    """What changes its shape with the argument `name`: integers for each of its steps (a mask, a padding), and tensors that are
    documented in the same words.
    """
    old, said = given[name], documented(model)
    changed = {was: now for was, now in zip(old.shape[1:], new.shape[1:], strict=False) if was != now}
    steps = next(iter(changed.items())) if old.ndim == new.ndim and len(changed) == 1 else (0, 0)
    found = {}
    for other, value in given.items():
        if other == name or other.endswith("input_ids"):
            continue
        if _alike(said, other, name) and value.shape == old.shape and value.is_meta:
            found[other] = torch.empty(new.shape, dtype=value.dtype, device="meta")
        elif _as_long(said, other, name) and value.is_meta and value.shape[1] == steps[0] == old.shape[1]:
            found[other] = value.new_empty((value.shape[0], steps[1], *value.shape[2:]))
        elif not value.is_floating_point() and value.shape == (old.shape[0], steps[0]):
            make = torch.empty if value.is_meta else torch.ones
            found[other] = make((new.shape[0], steps[1]), dtype=value.dtype, device=value.device)
    return found


def _documented(model: nn.Module, name: str, given: Named, counts: Counts) -> Tensor:
    """An argument from what its docstring says; as large as one that is given and documented in the same words."""
    said = documented(model)
    made = documented_argument(model, name, rows=counts.rows, length=counts.length, targets=counts.targets)
    return made.new_empty(next((given[one].shape for one in given if _alike(said, one, name)), made.shape))


def _as_long(said: Mapping[str, Documented], one: str, other: str) -> bool:
    """Whether two arguments are documented to have as many steps, with the same word."""
    words = [said[name].dims[1:2] for name in (one, other) if name in said]
    return len(words) == 2 and words[0] == words[1] != ()


def _alike(said: Mapping[str, Documented], one: str, other: str) -> bool:
    """Whether two arguments are documented in the same words; of images, the words for height and width may differ."""
    if one not in said or other not in said:
        return False
    first, second = said[one].dims, said[other].dims
    images = len(first) == len(second) == 4 and "channels" in first[1]
    return first[:2] == second[:2] if images else first == second


def _sizes(model: nn.Module, dims: tuple[int | str, ...], counts: Counts) -> list[int]:
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    sized = Sized(config, counts.rows, counts.length, counts.targets)
    return [dim if isinstance(dim, int) else sized.of(dim) for dim in dims]


def edits(model: nn.Module, given: Named, error: BaseException, counts: Counts) -> Iterator[tuple[InputEdit, ...]]:
    """Edits of inputs with which a forward raised, the likeliest first; those of one tuple belong together."""
    text = str(error)
    lacking = [name for name in _asked_for(model, error) if name not in given]
    if len(lacking) > 1:
        yield tuple(InputEdit(name) for name in lacking)
    yield from ((InputEdit(name),) for name in lacking)
    if "meta" in text and ("item" in text or "same device" in text or "data" in text):
        whole = [name for name, value in given.items() if not value.is_floating_point() and value.is_meta]
        yield from ((InputEdit(name, filled=True),) for name in whole if name not in ("input_ids", "decoder_input_ids"))
    yield from ((edit,) for edit in _reshaped(model, given, text, counts))


def _reshaped(model: nn.Module, given: Named, text: str, counts: Counts) -> Iterator[InputEdit]:
    """Other shapes of the floating-point inputs that a message asks for."""
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    seen = part_with(config, ("patch_size",))
    patch = number(seen, "patch_size") if seen is not None else 0
    for name, value in given.items():
        if not value.is_floating_point() or value.ndim < 2:
            continue
        kept = tuple("batch_size" if at == 0 and size == counts.rows else size for at, size in enumerate(value.shape))
        shapes = dict.fromkeys(_shapes(text, tuple(value.shape), kept, patch))
        if value.ndim == 2 and value.shape[0] % counts.rows == 0 and value.shape[0] > counts.rows:
            shapes["batch_size", value.shape[0] // counts.rows, value.shape[1]] = None
        yield from (InputEdit(name, dims) for dims in shapes if dims != kept)


def _asked_for(model: nn.Module, error: BaseException) -> list[str]:
    """The arguments that an exception names, else those that are None on the lines that it passed, the innermost line first."""
    arguments = tensor_arguments(model)
    named = [word for word in re.findall(r"\w+", str(error)) if word in arguments]
    if named:
        return list(dict.fromkeys(named))
    found: list[str] = []
    for frame in reversed(list(_frames(error.__traceback__))):
        words = re.findall(r"\w+", linecache.getline(frame.tb_frame.f_code.co_filename, frame.tb_lineno))
        absent = [
            w for w in words if w in arguments and w in frame.tb_frame.f_locals and frame.tb_frame.f_locals[w] is None
        ]
        found += [word for word in absent if word not in found]
    return found if "None" in str(error) else []


def _frames(entry: TracebackType | None) -> Iterator[TracebackType]:
    while entry is not None:
        yield entry
        entry = entry.tb_next


def _shapes(
    text: str, shape: tuple[int, ...], kept: tuple[int | str, ...], patch: int
) -> Iterator[tuple[int | str, ...]]:
    """Shapes that a message asks for instead of `shape`; `kept` is that shape with a word for the batch, `patch` the side of a
    patch of an image.
    """
    if spelled := re.search(r"\((batch_size\s*,[^()]*)\)", text):
        yield tuple(int(word) if word.isdigit() else word for word in re.split(r"\s*,\s*", spelled[1].strip()) if word)
    ndim = len(shape)
    yield from _rectangles(text, shape, kept)
    yield from _longer(text, shape, kept)
    yield from _as_images(text, shape)
    yield from _unpacked(text, kept)
    if re.search(
        r"Dimension out of range|must be a \d+-?D|Expected \dD|invalid for input|too many indices|channel dim", text
    ):
        yield (kept[0], 1, *kept[1:])
    yield from _unflattened(text, shape)
    numbers = [size for word in re.findall(r"\d+", text)[:12] if 1 < (size := int(word)) <= LARGEST]
    if ndim > 3 and shape[-1] == shape[-2]:
        yield from ((*kept[:-2], side, side) for side in _sides(shape[-1], numbers, patch))
        return
    yield from _apart(text, shape, kept)
    for got, wanted in _ratios(text):
        if got > shape[-1] and ndim > 2 and shape[-1] + wanted - got >= 0:  # beside features of another input
            yield (*kept[:-1], shape[-1] + wanted - got)
        for at in reversed(range(1, ndim)):
            if shape[at] * wanted % got == 0:
                yield (*kept[:at], shape[at] * wanted // got, *kept[at + 1 :])
    for at in reversed(range(1, ndim)):
        if shape[at] in numbers:
            yield from ((*kept[:at], other, *kept[at + 1 :]) for other in numbers if other != shape[at])


def _unpacked(text: str, kept: tuple[int | str, ...]) -> Iterator[tuple[int | str, ...]]:
    """As many dims as a line unpacks."""
    if unpacked := re.search(r"not enough values to unpack \(expected (\d+), got (\d+)\)", text):
        wanted, got = int(unpacked[1]), int(unpacked[2])
        if got == len(kept):
            yield (kept[0], *[1] * (wanted - got), *kept[1:])
            yield (kept[0], *[2] * (wanted - got), *kept[1:])
    if re.search(r"too many values to unpack \(expected (\d+)", text) and len(kept) > 2:
        yield (kept[0], *kept[2:])


def _rectangles(text: str, shape: tuple[int, ...], kept: tuple[int | str, ...]) -> Iterator[tuple[int | str, ...]]:
    """The height and width that a model wants, in the ratio in which what it was given misses them, or as they are."""
    pair = r"\((\d+)\*(\d+)\)"
    if both := re.search(rf"{pair}.*model {pair}", text):
        got, wanted = (int(both[1]), int(both[2])), (int(both[3]), int(both[4]))
        sides = [side * new // old for side, old, new in zip(shape[-2:], got, wanted, strict=False)]
        if shape[-2:] != got and all(sides):
            yield (*kept[:-2], *sides)
    if wanted_size := re.search(rf"model {pair}", text):
        yield (*kept[:-2], int(wanted_size[1]), int(wanted_size[2]))


def _longer(text: str, shape: tuple[int, ...], kept: tuple[int | str, ...]) -> Iterator[tuple[int | str, ...]]:
    """More samples, or more pixels of each side, where a convolution finds fewer than its kernel has."""
    if short := re.search(r"input size per channel: \((\d+)([^)]*)\)\. Kernel size: \((\d+)", text):
        times = 2 * -(-int(short[3]) // max(1, int(short[1])))
        sides = 2 if "x" in short[2] else 1
        yield (*kept[:-sides], *(size * times for size in shape[-sides:]))


def _sides(side: int, numbers: list[int], patch: int) -> Iterator[int]:
    """Sides of a square image: named in a message, or with as many patches as it names, a class token beside them."""
    if side in numbers:
        yield from (other for other in numbers if other != side and other >= patch)
    for count in numbers:
        across = isqrt(count)
        if patch and across > 1 and across * across in (count, count - 1):
            yield across * patch


def _apart(text: str, shape: tuple[int, ...], kept: tuple[int | str, ...]) -> Iterator[tuple[int | str, ...]]:
    """As many steps more or fewer as two lengths are apart that have to be equal, and of which none is that of the input."""
    if lengths := re.search(r"length\D* (\d+) \D*length\D* (\d+) do(?:es)? not match", text):
        apart = int(lengths[1]) - int(lengths[2])
        for steps in (shape[1] + apart, shape[1] - apart):
            if steps > 0 and steps != shape[1]:
                yield (kept[0], steps, *kept[2:])


def _ratios(text: str) -> Iterator[tuple[int, int]]:
    """Of a product of matrices that do not fit: the size that there was, and the size that was wanted."""
    for pattern in (r"\[\d+, (\d+)\] X \[(\d+), \d+\]", r"\(\d+x(\d+) and (\d+)x\d+\)"):
        if fits := re.search(pattern, text):
            yield int(fits[1]), int(fits[2])


def _as_images(text: str, shape: tuple[int, ...]) -> Iterator[tuple[int | str, ...]]:
    """Flattened patches as a convolution takes them."""
    dims = re.search(r"not enough values to unpack \(expected ([45]), got 2\)", text)
    if (dims or re.search(r"conv|Invalid channel dim", text)) and len(shape) == 2:
        for channels in (3, 1):
            side = round((shape[1] / channels) ** 0.5)
            if channels * side * side == shape[1]:
                yield (*([1] if dims and dims[1] == "5" else []), shape[0], channels, side, side)


def _unflattened(text: str, shape: tuple[int, ...]) -> Iterator[tuple[int | str, ...]]:
    """Patches flattened as a view takes them."""
    if view := re.search(r"shape '\[([-\d, ]+)\]' is invalid for input of size \d+", text):
        sizes = [int(word) for word in view[1].split(",")]
        inner = prod(size for size in sizes if size > 0)
        yield (*shape[:-1], inner)


def takes_objects(model: nn.Module) -> list[str]:
    """The arguments without a default that are no tensors as far as their annotation says: nothing here can make one."""
    tensors = tensor_arguments(model)
    return [
        name
        for name, one in inspect.signature(type(model).forward).parameters.items()
        if name not in ("self", *tensors) and one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
