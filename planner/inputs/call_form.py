"""The arguments of a module's forward, as values that can be edited: the dims of each tensor, and what is no tensor.

A first form follows from the signature. Annotations say what is a tensor, a list, a number or a dict. The lines of the forward
that unpack a shape say how many dims an argument has, and which is which. Names of arguments are hints for the rest. None of it
has to be right: `planner.inputs.corrections.argument_edits` corrects the form by what the forward raises on it.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from shardproof.planner.loading.configs.config_fields import field_of

ROWS, TOKENS = "rows", "tokens"
"""The dims that change with the sizes of a batch."""
PLACES = (2, 3, 5)
"""Frames, height and width of the grid of latents that a sequence of tokens is taken to be."""
GRID = PLACES[0] * PLACES[1] * PLACES[2]
SIDE, FRAMES, UNKNOWN_WIDTH = 16, 5, 14
"""Pixels of a side and frames of latents; the width of vectors before a layer says what it is."""

Dims: TypeAlias = tuple[int | str, ...]
Named: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TensorArgument:
    """A tensor: its dims; whether it holds integers or truth values; whether it is a list with one tensor for each row."""

    dims: Dims
    dtype: torch.dtype = torch.float32
    listed: bool = False
    filled: bool = False
    """Whether it holds numbers also in a trace, because the code reads them."""
    row: tuple[object, ...] = ()
    """The numbers of each row of a filled one; ones where there are none."""

    def sizes(self, rows: int, tokens: int) -> tuple[int, ...]:
        """The dims as numbers."""
        known = {ROWS: rows, TOKENS: tokens}
        return tuple(dim if isinstance(dim, int) else known[dim] for dim in self.dims)

    def made(self, rows: int, tokens: int) -> Tensor:
        """The tensor, on the meta device unless it is filled."""
        sizes = self.sizes(rows, tokens)
        if self.filled and self.row and self.dims[0] == ROWS:
            return torch.tensor([self.row] * rows, dtype=self.dtype)
        return (
            torch.ones(sizes, dtype=self.dtype) if self.filled else torch.empty(sizes, dtype=self.dtype, device="meta")
        )


@dataclass(frozen=True, slots=True)
class PlainArgument:
    """A number, a text or a nested tuple of them; `each_row`: a list with it for each row; `mapping`: an empty dict."""

    value: object = None
    each_row: bool = False
    mapping: bool = False

    def made(self, rows: int) -> object:
        """The value as the forward gets it."""
        if self.mapping:
            return {}
        return [self.value] * rows if self.each_row else self.value


Argument: TypeAlias = TensorArgument | PlainArgument


@dataclass(frozen=True, slots=True)
class CallForm:
    """Every argument by its name; `name.0` and `name.key` are parts of a list and of a dict."""

    arguments: tuple[tuple[str, Argument], ...] = ()

    def __getitem__(self, name: str) -> Argument:
        return dict(self.arguments)[name]

    def tensors(self) -> dict[str, TensorArgument]:
        """The arguments that are tensors."""
        return {name: one for name, one in self.arguments if isinstance(one, TensorArgument)}

    def with_argument(self, name: str, argument: Argument) -> "CallForm":
        """The form with this argument in its place, or behind the others."""
        given = dict(self.arguments)
        given[name] = argument
        return replace(self, arguments=tuple(given.items()))

    def made(self, rows: int, tokens: int) -> Named:
        """The arguments of a call, flat: `any_module.nested` puts the parts of lists and dicts together."""
        found: Named = {}
        for name, one in self.arguments:
            if isinstance(one, PlainArgument):
                found[name] = one.made(rows)
            elif one.listed:
                found |= {f"{name}.{row}": one.made(rows, tokens) for row in range(rows)}
            else:
                found[name] = one.made(rows, tokens)
        return found


def call_of(given: Mapping[str, Any], *, rows: int, tokens: int) -> CallForm:
    """Inputs as a call that can be edited: dims that have the sizes of a batch follow those."""

    def one(value: object) -> Argument:
        if not isinstance(value, Tensor):
            return PlainArgument(value)
        whole = not value.is_floating_point()
        dims: Dims = tuple(
            ROWS if at == 0 and size == rows else TOKENS if at == 1 and size == tokens and whole else size
            for at, size in enumerate(value.shape)
        )
        alike = not value.is_meta and value.dim() > 1 and dims[0] == ROWS and bool((value == value[:1]).all())
        row = _nested(value[0].tolist()) if alike and TOKENS not in dims else ()
        return TensorArgument(dims, value.dtype, filled=not value.is_meta, row=row)

    return CallForm(tuple((name, one(value)) for name, value in given.items()))


def _nested(values: list[Any]) -> tuple[object, ...]:
    return tuple(_nested(one) if isinstance(one, list) else one for one in values)


def first_form(model: nn.Module) -> CallForm:
    """What a forward that is given nothing asks for, as far as its signature and its source tell."""
    form = CallForm()
    arguments = forward_arguments(model)
    needed = [name for name, one in arguments.items() if one.default is inspect.Parameter.empty]
    for name in needed or [name for name, one in arguments.items() if _may_be_a_tensor(one)]:
        for part, argument in guess(model, name).items():
            form = form.with_argument(part, argument)
    return form


def _may_be_a_tensor(one: inspect.Parameter) -> bool:
    """Whether an argument is None where it is not given, and its annotation speaks of nothing but tensors, if it has one."""
    return one.default is None and (one.annotation is inspect.Parameter.empty or "Tensor" in str(one.annotation))


def forward_arguments(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The named arguments of a forward."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(type(model).forward).parameters
    return {name: one for name, one in found.items() if name != "self" and one.kind not in several}


_SCALARS = re.compile(r"(\w+_)?(timesteps?|t|r|sigma|guidance|time|fps|strength|scale)(_r)?(_cond)?")
_MASKS = re.compile(r"\w*masks?")
_PLACES_OF_TOKENS = re.compile(r"(\w+_)?ids|\w*coords|\w*_pos")
_ONE_VECTOR = re.compile(r"\w*(pooled|global)\w*|\w*clip_text\w*")
_LABELS = re.compile(r"\w*(labels?|style)")
_OTHER_STREAM = re.compile(r"\w*(encoder|embed|feats|text|context|cond|image_emb|states_t5|states_llama)\w*")
_PIXELS = re.compile(r"\w*(pixel|sample|latents?)\w*")
_COUNTS = {"frame": PLACES[0], "height": PLACES[1], "width": PLACES[2]}


def guess(model: nn.Module, name: str) -> dict[str, Argument]:
    """One argument by its annotation, by how the forward unpacks its shape, and by its name; of a dict, nothing."""
    parameter = forward_arguments(model)[name]
    kind = str(parameter.annotation).replace("typing.", "").lower()
    if re.match(r"(optional\[)?(dict|<class 'dict)", kind):
        return {name: PlainArgument(mapping=True)}
    if re.match(r"(optional\[)?tuple\[torch.tensor", kind):
        return {f"{name}.{at}": _tensor(model, name) for at in range(kind.count("tensor"))}
    if re.match(r"(optional\[)?list\[(list\[)?torch.tensor|list\[(list\[)?tensor", kind):
        one = _tensor(model, name)
        return {name: replace(one, dims=one.dims[1:], listed=True)}
    if re.match(r"(optional\[)?(list|tuple)\[", kind) and "int" in kind and "tensor" not in kind:
        return {name: PlainArgument((1, PLACES[1] * PLACES[0], PLACES[2]), each_row="tuple" in kind)}
    if re.match(r"(<class ')?(int|float|bool)\b", kind) and "tensor" not in kind:
        return {name: PlainArgument(next((n for word, n in _COUNTS.items() if word in name), 1))}
    return {name: _tensor(model, name)}


def _tensor(model: nn.Module, name: str) -> TensorArgument:
    unpacked = unpacked_dims(model, name)
    if unpacked:
        return TensorArgument(unpacked)
    if _SCALARS.fullmatch(name):
        return TensorArgument((ROWS,))
    if _MASKS.fullmatch(name):
        return TensorArgument((ROWS, TOKENS), torch.long)
    if name in ("input_ids", "decoder_input_ids", "idx", "tokens"):
        return TensorArgument((ROWS, TOKENS), torch.long)
    if _PLACES_OF_TOKENS.fullmatch(name):
        return TensorArgument((TOKENS if "txt" in name or "text" in name else GRID, 3))
    if _LABELS.fullmatch(name):
        return TensorArgument((ROWS,), torch.long)
    if _ONE_VECTOR.fullmatch(name):
        return TensorArgument((ROWS, UNKNOWN_WIDTH))
    if _OTHER_STREAM.fullmatch(name):
        return TensorArgument((ROWS, TOKENS, UNKNOWN_WIDTH))
    if _PIXELS.fullmatch(name):
        return TensorArgument((ROWS, UNKNOWN_WIDTH, SIDE, SIDE))
    return TensorArgument((ROWS, GRID, UNKNOWN_WIDTH))


_UNPACK = r"(?:\(\s*)?((?:\w+\s*,\s*)+\w+)\s*,?\s*\)?\s*=\s*{name}\.(?:shape|size\(\))(?!\[)"


def unpacked_dims(model: nn.Module, name: str) -> Dims | None:
    """The dims of an argument of whose shape a line of the forward gives every dim a name (`b, c, h, w = x.shape`)."""
    try:
        source = inspect.getsource(inspect.unwrap(type(model).forward))
    except (OSError, TypeError):
        return None
    found = re.search(_UNPACK.format(name=re.escape(name)), source)
    return dims_of_words(model, re.split(r"\s*,\s*", found[1].strip())) if found else None


def dims_of_words(model: nn.Module, words: list[str]) -> Dims:
    """Sizes for the names that code gives to the dims of a shape, in order."""
    return tuple(_size_of_word(model, word.strip().lower(), at) for at, word in enumerate(words))


def _size_of_word(model: nn.Module, word: str, at: int) -> int | str:
    if at == 0 or "batch" in word or word in ("b", "bs", "bsz"):
        return ROWS
    if "channel" in word or word in ("c", "ch", "d", "dim", "hidden_size", "_"):
        return _channels(model) if "channel" in word or word in ("c", "ch") else UNKNOWN_WIDTH
    if "frame" in word or "time" in word or word in ("t", "f", "temporal"):
        return FRAMES
    if "height" in word or "width" in word or word in ("h", "w"):
        return SIDE
    return GRID


def _channels(model: nn.Module) -> int:
    for name in ("in_channels", "num_channels", "input_channels", "latent_channels"):
        value = field_of(getattr(model, "config", None), name)
        if type(value) is int:
            return value
    return UNKNOWN_WIDTH
