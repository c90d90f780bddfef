"""An argument of a forward as a tensor, from what the forward's docstring and the argument's name say of it.

Transformers documents every argument as "NAME (`torch.LongTensor` of shape `(batch_size, sequence_length)`)"; the words of a
shape are sizes of the batch, of the sequence, or fields of the config.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from shardproof.planner.inputs.media import FRAMES, SIDE, number, part_with

_ARGUMENT = re.compile(r"^\s*(\w+)\s*\(([^\n]*?Tensor\w*)`?[^\n]*?of shape\s*`?\s*\(([^\n]*?)\)`", re.MULTILINE)
_TENSOR = re.compile(r"Tensor")
_WHOLE = ("Long", "Int", "Bool", "Byte")
_INTEGERS = re.compile(
    r"\w*(_ids?|_mask|mask|_index|indices|_labels?|_lengths?|_thw|_sizes?|_shapes|timesteps?|input_tokens|bbox)s?|num_\w+"
)


@dataclass(frozen=True, slots=True)
class Documented:
    """The words of a shape, and whether the tensor holds integers."""

    dims: tuple[str, ...]
    whole: bool


def documented(model: nn.Module) -> dict[str, Documented]:
    """What the docstring of a model's forward says of its arguments."""
    found: dict[str, Documented] = {}
    for name, kind, dims in _ARGUMENT.findall(type(model).forward.__doc__ or ""):
        words = tuple(filter(None, (word.strip(" `") for word in dims.split(","))))
        image = len(words) == 4 and "channels" in words[1]  # also where it is a mask
        whole = any(word in kind for word in _WHOLE) or (_INTEGERS.fullmatch(name) is not None and not image)
        found.setdefault(name, Documented(words, whole))
    return found


def tensor_arguments(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The arguments of a forward that take tensors, as far as annotations and docstrings tell; all that have neither."""
    said = documented(model)
    found = {}
    for name, one in inspect.signature(type(model).forward).parameters.items():
        if name == "self" or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        text = str(one.annotation)
        plain = isinstance(one.default, bool | int | float | str) and name not in said
        if not plain and (name in said or one.annotation is one.empty or _TENSOR.search(text)):
            found[name] = one
    return found


def needed(model: nn.Module) -> tuple[str, ...]:
    """The arguments without which a forward cannot be called, and the one that the class names as its main input."""
    arguments = tensor_arguments(model)
    wanted = [name for name, one in arguments.items() if one.default is one.empty]
    main = getattr(model, "main_input_name", "")
    return tuple(dict.fromkeys([*wanted, *([main] if main in arguments else [])]))


def documented_argument(model: nn.Module, name: str, *, rows: int, length: int, targets: int) -> Tensor:
    """An argument on the meta device; of one that nothing is known of, one number (an index) or one vector for each token."""
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    said = documented(model).get(name)
    whole = said.whole if said is not None else _INTEGERS.fullmatch(name) is not None
    words = said.dims if said is not None and said.dims else _usual(name, whole)
    sizes = Sized(config, rows, targets if name.startswith("decoder_") else length, targets)
    dtype = torch.long if whole else torch.float32
    return torch.empty(
        [sizes.of(word, last=at == len(words) - 1) for at, word in enumerate(words)], dtype=dtype, device="meta"
    )


def _usual(name: str, whole: bool) -> tuple[str, ...]:
    if "pixel" in name or name in ("image", "images"):
        return ("batch_size", "num_channels", "height", "width")
    if "spectrogram" in name:
        return ("batch_size", "frames", "num_mel_bins")
    return ("batch_size", "sequence_length") if whole else ("batch_size", "sequence_length", "hidden_size")


@dataclass(frozen=True, slots=True)
class Sized:
    """What the words of a shape count: `rows` of a batch, `length` tokens, `targets` tokens of a decoder or another model."""

    config: PreTrainedConfig
    rows: int
    length: int
    targets: int

    def of(self, text: str, *, last: bool = False) -> int:
        """The size of one dim; sums and products of words are worked out, and a word that nobody knows is 1, or a width."""
        terms = [part for part in re.split(r"\s*\+\s*", text) if part]
        if len(terms) > 1:
            return sum(self.of(part) for part in terms)
        factors = [part for part in re.split(r"\s*\*\s*", text) if part]
        if len(factors) > 1:
            product = 1
            for part in factors:
                product *= self.of(part)
            return product
        return self._word(text.strip("() ").removeprefix("self.").removeprefix("config."), last=last)

    def _word(self, word: str, *, last: bool) -> int:
        if word.isdigit():
            return max(1, int(word))
        if known := self._field(word):
            return known
        low = word.lower()
        for parts, size in self._meanings().items():
            if any(part in low for part in parts):
                return size() or 1
        return self._width() if last else 1

    def _meanings(self) -> Mapping[tuple[str, ...], Callable[[], int]]:
        """What parts of a word mean, the first that fits."""
        return {
            ("batch",): lambda: self.rows,
            ("channel",): lambda: self._field("num_channels", "in_channels", "in_chans") or 3,
            ("height", "width", "image_size"): lambda: self._field("image_size") or SIDE,
            ("mel", "feature_dim", "feature_size"): lambda: self._field(*BIN_FIELDS) or 80,
            ("frame",): lambda: FRAMES,
            ("target", "decoder"): lambda: self.targets,
            ("seq", "length", "token", "patches", "time"): lambda: self.length,
            ("hidden", "dim", "embed"): self._width,
        }

    def _field(self, *names: str) -> int:
        """The first of these fields in the config or a part of it; 0 if there is none."""
        part = part_with(self.config, names)
        return number(part, *names) if part is not None else 0

    def _width(self) -> int:
        return self._field("hidden_size", "d_model", "embed_dim", "dim") or 1


BIN_FIELDS = ("num_mel_bins", "n_mels", "mel_bins", "input_feat_size", "input_dim", "feature_size")
