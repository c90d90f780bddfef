"""The arguments of a model's forward with data, for a run: random tokens, images and audio."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from shardproof.planner.inputs.accepted import NoInputsError, plain_form, search
from shardproof.planner.inputs.example import (
    Inputs,
    Sizes,
    accept_call,
    accept_form,
    accepted_form,
    attempts,
    caching,
    guesses_calls,
    inputs_of,
    known_call,
    token_inputs,
)
from shardproof.planner.loading.configs.config_fields import field_of

AHEAD = 4
"""Text tokens before the image in a row: more than left padding hides."""


CORRECTED = 12
"""Calls of a small model that are corrected by the operator that failed: each is a run."""


def real_inputs(model: nn.Module, sizes: Sizes, *, seed: int = 0) -> Inputs:
    """Arguments on the model's device, in the form of the first attempt of `planner.inputs.example` that its forward accepts.

    A row with an image is longer than `sizes` says, by the placeholder tokens of the image. If no attempt runs, the last one is
    returned, and its exception shows when the model is run.
    """
    return fullest_inputs(model, sizes, seed=seed)[0]


def fullest_inputs(model: nn.Module, sizes: Sizes, *, seed: int = 0) -> tuple[Inputs, Exception | None]:
    """As `real_inputs`, with the exception for which they are text only although the model takes more; None if they are
    complete.
    """
    form = accepted_form(model)
    if form is None and guesses_calls(model):
        form = known_call(model, sizes) or plain_form(model, sizes, lambda given: _filled(model, given, sizes, seed))
        if form is not None:
            accept_call(model, form, sizes)
    if form is not None:
        return _filled(model, inputs_of(model, form, sizes), sizes, seed), None

    calls: dict[int, int] = {}

    def run(data: Inputs) -> Inputs:
        counted = _Calls()
        try:
            with counted:
                filled = _with_all_placeholders(model, data, sizes)
                _runs(model, filled)
        except Exception as error:
            calls[id(error)] = counted.count
            raise
        return filled

    try:
        accepted, given = search(
            model,
            run,
            sizes=sizes,
            failed=Exception,
            reached=lambda error: calls.get(id(error), 0),
            fill=lambda given: _with_data(model, given, sizes, seed),
            corrected=CORRECTED,
        )
    except NoInputsError:
        raise
    except Exception as error:  # nothing runs: what it raises shows when the model is run
        return _text(model, sizes, seed), error
    accept_form(model, accepted.form)
    return given, accepted.refused


class _Calls:
    """Counts the calls of modules that came to their end."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self.handle = nn.modules.module.register_module_forward_hook(self._ended)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _ended(self, *_: object) -> None:
        self.count += 1


def _text(model: nn.Module, sizes: Sizes, seed: int) -> Inputs:
    """The text alone, where the model takes text; else its first form."""
    forms, tokens = attempts(model, sizes), token_inputs(model).keys()
    given = next((form for form in forms if form.keys() == tokens), forms[0])
    return {
        name: _tokens(model, form.shape, torch.Generator().manual_seed(seed))
        if name in tokens
        else torch.zeros(form.shape)
        for name, form in given.items()
    }


def _runs(model: nn.Module, given: Inputs) -> None:
    with torch.no_grad():
        model(**given, **caching(model, False))


def vocabulary(model: nn.Module) -> int:
    """The number of token ids that are valid both as input and as output."""
    rows = [getattr(_embedding(model, "get_input_embeddings"), "num_embeddings", None)]
    text = model.config.get_text_config() if isinstance(model.config, PreTrainedConfig) else None
    said = field_of(text, "vocab_size")
    told: list[int] = [said] if type(said) is int and said > 0 else []
    read: list[int] = [count for count in rows if count] or [
        module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding) and not told
    ]
    written = getattr(_embedding(model, "get_output_embeddings"), "out_features", None)
    # a table may have rows for several codebooks, of which a token id names one row by its place
    least: int = min([max(read or told or [2]), *told, *([written] if written else [])])
    return least


def _embedding(model: nn.Module, getter: str) -> object:
    """The embedding that a model's getter returns; None if there is none."""
    with suppress(NotImplementedError, AttributeError):
        return getattr(model, getter)()
    return None


def _filled(model: nn.Module, forms: Inputs, sizes: Sizes, seed: int) -> Inputs:
    """Data for the meta tensors, with the placeholders of images, video and audio."""
    return _with_all_placeholders(model, _with_data(model, forms, sizes, seed), sizes)


def _with_all_placeholders(model: nn.Module, given: Inputs, sizes: Sizes) -> Inputs:
    for kind in _MEDIA if len(given) > len(token_inputs(model, sizes)) else ():
        given = _with_placeholders(model, given, kind)
    return given


def _with_data(model: nn.Module, forms: Inputs, sizes: Sizes, seed: int) -> Inputs:
    """Data for the meta tensors: random tokens, and pixels near 1 in the model's dtype. Real tensors stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    device, dtype = next(model.parameters()).device, _dtype(model)
    tokens = token_inputs(model, sizes)
    given: Inputs = {}
    for name, form in forms.items():
        if not isinstance(form, Tensor):
            given[name] = form
        elif name in tokens:
            given[name] = _tokens(model, form.shape, generator)
        elif form.is_floating_point():
            given[name] = torch.randn(form.shape, generator=generator, dtype=torch.float64).to(dtype)
        else:
            given[name] = (
                (torch.ones if "mask" in name else torch.zeros)(form.shape, dtype=form.dtype) if form.is_meta else form
            )
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}


def _dtype(model: nn.Module) -> torch.dtype:
    return next(value.dtype for value in model.parameters() if value.is_floating_point())


def _tokens(model: nn.Module, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random text tokens, without special tokens such as image placeholders."""
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    placeholders = {getattr(config, f"{kind}_token_{word}", None) for kind in _MEDIA for word in ("id", "index")}
    text = [token for token in range(vocabulary(model)) if token not in placeholders]
    return torch.tensor(text)[torch.randint(len(text), tuple(shape), generator=generator)]


_MEDIA = ("image", "video", "audio")


def _with_placeholders(model: nn.Module, given: Inputs, kind: str) -> Inputs:
    """The rows with one placeholder token for every feature of their image, video or audio; unchanged if the model has none.

    Source of the contract: `get_image_features` and `image_token_id`, transformers 5.23.0, docs/source/en/model_doc of every
    vision-language model; the same of `video` and `audio`.
    """
    token, features = _placeholder(model, kind), getattr(model, f"get_{kind}_features", None)
    if token is None or features is None or "input_ids" not in given:
        return given
    names = inspect.signature(features).parameters
    wanted = {name: value for name, value in given.items() if name in names and name != "input_ids"}
    if not any(value.is_floating_point() for value in wanted.values()):
        return given
    with torch.no_grad():
        found = features(**wanted)
    ids = given["input_ids"]
    count = _rows(getattr(found, "pooler_output", found)) // ids.shape[0]
    longer = {"input_ids": _inserted(ids, token, count)}
    kinds = given.get("mm_token_type_ids")
    if kinds is not None:
        longer["mm_token_type_ids"] = _inserted(kinds, 1, count)
    return {**given, **longer}


def _placeholder(model: nn.Module, kind: str) -> int | None:
    tokens = (getattr(model.config, f"{kind}_token_{word}", None) for word in ("id", "index"))
    return next((token for token in tokens if token is not None), None)


def _inserted(rows: Tensor, value: int, count: int) -> Tensor:
    middle = rows.new_full((rows.shape[0], count), value)
    return torch.cat([rows[:, :AHEAD], middle, rows[:, AHEAD:]], dim=1)


def _rows(features: object) -> int:
    """The number of feature vectors in a tensor, or in nested lists of tensors."""
    if isinstance(features, Tensor):
        return features.numel() // features.shape[-1]
    parts = features.values() if isinstance(features, Mapping) else features
    return sum(map(_rows, parts)) if isinstance(parts, list | tuple) else 0
