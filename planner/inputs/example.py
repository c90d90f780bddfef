"""Example inputs of a model: the arguments in the signature of its forward, as tensors on the meta device.

Their shapes follow from the config. Images, video and audio are included if their form is known (`planner.inputs.media`),
so that vision and audio towers run. A signature may fit several forms, so there is a list of attempts, the fullest first. A
trace uses them as they are, with sizes that the dims of models are unlikely to have; `planner.inputs.numbers` fills in data
for a run.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from shardproof.planner.inputs.call_form import CallForm, first_form
from shardproof.planner.inputs.documented import documented_argument, needed
from shardproof.planner.inputs.guessed import guessed, tokens_of
from shardproof.planner.inputs.media import media, number
from shardproof.planner.inputs.mended import InputEdit
from shardproof.planner.loading.configs.config_fields import field_of
from shardproof.planner.loading.modules.any_module import ModuleConfig
from shardproof.planner.loading.modules.declared_inputs import declared

Inputs: TypeAlias = dict[str, Any]
"""Arguments by name: tensors; of modules that are no Transformers models also numbers and lists, and `name.key` for parts of
lists and dicts.
"""

MANY = 12
"""Batch size for a model that folds codebooks into the batch: divisible by all small counts."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The batch size (`rows`), the number of tokens, and the number of decoder tokens of an encoder-decoder."""

    rows: int = 3
    length: int = 17
    targets: int = 11


TRACED = Sizes()


@dataclass(frozen=True, slots=True)
class InputForm:
    """A form of inputs: the number of an attempt, and the edits of it, in order; or the whole call of a module's forward."""

    attempt: int
    edits: tuple[InputEdit, ...] = ()
    call: CallForm | None = None


_taken: "WeakKeyDictionary[nn.Module, InputForm]" = WeakKeyDictionary()


def example_inputs(model: nn.Module, sizes: Sizes = TRACED) -> Inputs:
    """The inputs of a trace, on the meta device: the form that `trace` found the model to accept, else the fullest."""
    return inputs_of(model, _taken.get(model, InputForm(0)), sizes)


def inputs_of(model: nn.Module, form: InputForm, sizes: Sizes = TRACED) -> Inputs:
    """The inputs of a form, on the meta device; numbers that the code reads are real."""
    if form.call is not None:
        return form.call.made(sizes.rows, sizes.length)
    every = attempts(model, sizes)
    if not every:
        return first_form(model).made(sizes.rows, sizes.length)
    given = every[min(form.attempt, len(every) - 1)]
    for edit in form.edits:
        given = edit.apply(model, given, sizes)
    return given


def forms(model: nn.Module, sizes: Sizes = TRACED) -> tuple[InputForm, ...]:
    """The forms to try, without edits, in order."""
    return tuple(InputForm(at) for at in range(len(attempts(model, sizes))))


def guesses_calls(model: nn.Module) -> bool:
    """Whether nothing but the module's own forward says what it takes: no Transformers model, and no inputs declared."""
    config = model.config
    own = isinstance(config, ModuleConfig) and not config.declared_inputs
    return own and "input_ids" not in inspect.signature(model.forward).parameters


def accept_form(model: nn.Module, form: InputForm) -> None:
    """Remember the form that the model's forward accepts."""
    _taken[model] = form


def accept_call(model: nn.Module, form: InputForm, sizes: Sizes) -> None:
    """Remember the call that a module takes at these sizes, also for other models of the same class and fields."""
    _calls[_alike(model), sizes] = form
    accept_form(model, form)


def known_call(model: nn.Module, sizes: Sizes) -> InputForm | None:
    """The call that another model of the same class and fields takes at these sizes, some of which stand in it as numbers."""
    return _calls.get((_alike(model), sizes))


_calls: dict[tuple[tuple[type, str], Sizes], InputForm] = {}


def _alike(model: nn.Module) -> tuple[type, str]:
    config = model.config
    assert isinstance(config, ModuleConfig)
    fields = {name: getattr(config, name, None) for name in type(config).defaults}
    return type(config), repr(sorted(fields.items()))


def accepted_form(model: nn.Module) -> InputForm | None:
    """The form that the model's forward accepts; None before its first trace."""
    return _taken.get(model)


def token_inputs(model: nn.Module, sizes: Sizes = TRACED) -> dict[str, int]:
    """The arguments that take token ids, with their lengths in tokens."""
    if isinstance(model.config, ModuleConfig) and model.config.declared_inputs:
        given = _declared(model.config, sizes)
        return tokens_of({name: one for name, one in given.items() if isinstance(one, Tensor) and one.is_meta})
    names = inspect.signature(model.forward).parameters
    if guesses_calls(model):
        form = _taken.get(model)
        if form is not None and form.call is not None:
            return tokens_of({n: v for n, v in inputs_of(model, form, sizes).items() if n.endswith("ids")})
        return tokens_of(next(guessed(model, rows=sizes.rows, length=sizes.length), {}))
    found = {"input_ids": min(sizes.length, _positions(model.config) or sizes.length)} if "input_ids" in names else {}
    if "decoder_input_ids" in names and getattr(model.config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = sizes.targets
    return found


def _positions(config: object) -> int:
    """The number of positions of the text; 0 where the config has none."""
    text = config.get_text_config() if isinstance(config, PreTrainedConfig) else config
    found = field_of(text, "max_position_embeddings")
    return found if type(found) is int and found > 1 else 0


def attempts(model: nn.Module, sizes: Sizes = TRACED) -> list[Inputs]:
    """Inputs to try in order; empty for a model that takes neither tokens, images, audio nor hidden states."""
    names = inspect.signature(model.forward).parameters
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    if isinstance(config, ModuleConfig):
        if config.declared_inputs:
            return [_declared(config, sizes)]
        if "input_ids" not in names:
            return list(guessed(model, rows=sizes.rows, length=sizes.length))
    tokens: Inputs = {name: _ids(sizes.rows, length) for name, length in token_inputs(model, sizes).items()}
    found = [tokens | _told_apart(form, names, sizes) | form for form in media(config, names, sizes.rows)]
    found += [tokens | states for states in _states(config, names, sizes)]
    found += _documented_arguments(model, tokens, sizes) if not found else []
    if tokens:
        found += [tokens, {name: _ids(MANY, value.shape[1]) for name, value in tokens.items()}]
    return [_placed(config, names, form) | form for form in found]


def _documented_arguments(model: nn.Module, tokens: Inputs, sizes: Sizes) -> list[Inputs]:
    """What the forward cannot be called without, from what its docstring says of it, where there is more than tokens."""
    rest = [name for name in needed(model) if name not in tokens]
    made_of = {"rows": sizes.rows, "length": sizes.length, "targets": sizes.targets}
    return [tokens | {name: documented_argument(model, name, **made_of) for name in rest}] if rest else []


def _declared(config: ModuleConfig, sizes: Sizes) -> Inputs:
    return declared(config.declared_inputs, config, rows=sizes.rows, length=sizes.length)


def caching(model: nn.Module, wanted: bool) -> dict[str, bool]:
    """`use_cache` as a keyword argument, if the forward takes it or passes on its keyword arguments; else nothing."""
    names = inspect.signature(type(model).forward).parameters
    known = "use_cache" in names
    if not known and any(one.kind is one.VAR_KEYWORD for one in names.values()):
        known = any("use_cache" in inspect.signature(kind.forward).parameters for kind in _kinds_of_models(model))
    return {"use_cache": wanted} if known else {}


def _kinds_of_models(model: nn.Module) -> set[type[PreTrainedModel]]:
    return {type(module) for module in model.modules() if isinstance(module, PreTrainedModel)}


def _ids(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.long, device="meta")


def _told_apart(form: Inputs, names: Mapping[str, inspect.Parameter], sizes: Sizes) -> Inputs:
    """Token type ids, if images come with a grid and the forward has an argument for the types."""
    wanted = "mm_token_type_ids" in names and "image_grid_thw" in form
    return {"mm_token_type_ids": _ids(sizes.rows, sizes.length)} if wanted else {}


def _placed(config: PreTrainedConfig, names: Mapping[str, inspect.Parameter], form: Inputs) -> Inputs:
    """The bounding box of every token on its page, for document models."""
    if "bbox" not in names or "input_ids" not in form:
        return {}
    return {"bbox": _ids(*form["input_ids"].shape, number(config, "dim_bbox") or 4)}


def _states(config: PreTrainedConfig, names: Mapping[str, inspect.Parameter], sizes: Sizes) -> Iterator[Inputs]:
    """Hidden states of another model, for a decoder with cross-attention or a model that takes nothing else."""
    width = number(config, "cross_attention_hidden_size", "hidden_size", "d_model")
    if "cross_attention_states" in names and "pixel_values" not in names and width:
        yield {"cross_attention_states": torch.empty((sizes.rows, sizes.targets, width), device="meta")}
    if {"input_ids", "decoder_input_ids"} & set(names) or not width:
        return
    seen = number(config, "encoder_hidden_size") or width
    whole = {name: torch.empty((sizes.rows, sizes.length, width), device="meta") for name in _OWN if name in names}
    other = {name: torch.empty((sizes.rows, sizes.targets, seen), device="meta") for name in _OTHER if name in names}
    for name, value in whole.items():
        yield from ({name: value} | other, {name: value}) if other else ({name: value},)


_OWN = ("hidden_states", "inputs_embeds", "query_embeds")
_OTHER = ("encoder_hidden_states",)
