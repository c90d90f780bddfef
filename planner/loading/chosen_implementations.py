"""Are the implementations that a caller asks for ones that the installed Transformers has for this model?"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from shardproof.planner.ir.errors import ArgumentError, LoadError, reason
from shardproof.planner.ir.readable_text import listing
from shardproof.planner.loading.build import build
from shardproof.planner.loading.implementations import NOTHING_ASKED, Implementations
from shardproof.planner.loading.load import LoadedModel


def with_implementations(loaded: LoadedModel, asked: Implementations) -> LoadedModel:
    """The model with the implementations that were asked for, after the installed Transformers has accepted them for it.

    Raises:
        ArgumentError: the installed Transformers registers no implementation of that name.
        LoadError: Transformers refuses it for this model, or the model has nothing that it would be used in.
    """
    if asked == NOTHING_ASKED:
        return loaded
    if loaded.is_module:
        raise ArgumentError(f"{loaded.title} is no Transformers model: leave --attention and --experts out.")
    for option, given, known in _choices(asked):
        if given not in known:
            raise ArgumentError(
                f"{option} {given}: the installed Transformers registers no such implementation; it has {listing(known)}."
            )
    found = replace(loaded, asked=asked)
    model = _built(found)
    if asked.experts is not None and not any(map(_has_experts, model.modules())):
        raise LoadError(f"--experts {asked.experts}: {loaded.title} has no experts whose implementation can be chosen.")
    held = getattr(model.config, "_attn_implementation", None)
    if asked.attention is not None and held != asked.attention:
        raise LoadError(f"--attention {asked.attention}: Transformers takes {held} instead of it for {loaded.title}.")
    return found


def _choices(asked: Implementations) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The options that were given, with their values and the names that are registered."""
    names = registered()
    for option, given in (("--attention", asked.attention), ("--experts", asked.experts)):
        if given is not None:
            yield option, given, names[option]


def registered() -> Mapping[str, tuple[str, ...]]:
    """The names that the installed Transformers registers, by option; `eager` is the code of the modeling file."""
    return {
        "--attention": ("eager", *sorted(ALL_ATTENTION_FUNCTIONS.valid_keys())),
        "--experts": ("eager", *sorted(ALL_EXPERTS_FUNCTIONS.valid_keys())),
    }


def _built(loaded: LoadedModel) -> PreTrainedModel:
    """The model on meta, which Transformers' own checks of both names have passed."""
    build(replace(loaded, asked=NOTHING_ASKED))  # what fails without them is not theirs
    try:
        model = build(loaded)
    except LoadError as error:
        cause = error.__cause__ or error
        told = " ".join(f"{option} {given}" for option, given, _ in _choices(loaded.asked))
        raise LoadError(f"{told}: Transformers refuses it for {loaded.title} ({reason(cause)}).") from error
    assert isinstance(model, PreTrainedModel)
    return model


def _has_experts(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel) and module._can_set_experts_implementation()
