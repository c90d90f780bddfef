"""The twin: a small model with the same structure and random weights.

A wrong plan is wrong at any size, so it is tested at a small size in float64, where a fault cannot be confused with rounding.
"""

import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from transformers import PreTrainedModel

from shardproof.planner.inputs.numbers import real_inputs
from shardproof.planner.inputs.run_modes import RunMode, scripts
from shardproof.planner.ir.errors import ShardproofError
from shardproof.planner.loading.adapters.adapted_class import without_dropout
from shardproof.planner.loading.build import build
from shardproof.planner.loading.implementations import NOTHING_ASKED
from shardproof.planner.loading.load import LoadedModel, with_adapter_classes
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.twins.agreement import agreeing
from shardproof.planner.twins.random_state import random_state
from shardproof.planner.twins.small_configs import SMALL, beside_sizes, by_names, by_trial, by_width, of_module
from shardproof.planner.twins.small_media import smaller_media
from shardproof.planner.twins.small_runs import LARGEST, SHORT, TrialRun, parameters_of, trial_run
from shardproof.planner.weights.quantised import method_of

NARROW = 20_000_000
"""The most parameters of a twin where there is none of `SMALL`."""
_PATIENCE = 4
"""Small models that run on text alone, before one of them is taken."""


class TwinError(ShardproofError, ValueError):
    """No small model with the same structure was found; the message says what would help."""


def twin(loaded: LoadedModel, *, tp: int, pp: int = 1) -> LoadedModel:
    """A small model with the same structure, for `tp` ranks and `pp` stages.

    Kept are every kind of layer, the ratio of query to KV heads, and whether each size divides by `tp`. It is not quantised.

    Raises:
        TwinError: the config's fields can be shrunk neither by their names nor by trial, and the model is too large to run
            as it is.
    """
    small = _twin(
        dataclasses.replace(loaded, asked=NOTHING_ASKED), tp=tp, pp=pp
    )  # sizes do not depend on what was asked
    return dataclasses.replace(small, asked=loaded.asked)


def _twin(loaded: LoadedModel, *, tp: int, pp: int) -> LoadedModel:
    if loaded.adapters:
        loaded = with_adapter_classes(loaded, tuple(map(without_dropout, loaded.adapters)))
    loaded = _unquantised(loaded)
    with quiet():
        kinds, text_alone, first, patience = parameters_of(loaded).kinds, None, "", _PATIENCE
        unequal: Counter[str] = Counter()
        for most, config in chain(
            ((SMALL, config) for config in of_module(loaded, tp=tp, pp=pp)),
            ((SMALL, config) for config in by_names(loaded, tp=tp, pp=pp)),
            ((SMALL, config) for config in [beside_sizes(loaded)]),
            ((NARROW, config) for config in by_width(loaded.config, tp=tp, pp=pp)),
            ((NARROW, config) for derive in (False, True) for config in by_names(loaded, tp=tp, pp=pp, derive=derive)),
        ):
            small = dataclasses.replace(loaded, config=config, checkpoint=None)
            parameters = parameters_of(small)
            if parameters.count > most or (kinds and parameters.kinds != kinds):
                first = first or parameters.raised
                continue
            small, outcome = _with_small_media(loaded, small, unequal)
            if outcome.whole:
                return small
            first = first or outcome.raised
            if outcome.runs:
                text_alone, patience = text_alone or small, patience - 1
            if not patience:
                break
        if text_alone is not None:
            return text_alone
        small = dataclasses.replace(loaded, config=by_trial(loaded, tp=tp, pp=pp), checkpoint=None)
        if parameters_of(small).count <= LARGEST:
            small, outcome = _with_small_media(loaded, small, unequal)
            if outcome.runs:
                return small
    raise _no_twin(loaded, first)


def _no_twin(loaded: LoadedModel, first: str) -> TwinError:
    """The error where no twin was found; `first` is what the first small copy raised, where it was built or run."""
    why = f" The first small copy that was tried raised {first}." if first else ""
    return TwinError(
        f"No small twin of {loaded.title} was found: give small sizes with --set, so that it stays below "
        f"{LARGEST // 1_000_000} million parameters.{why}"
    )


def _unquantised(loaded: LoadedModel) -> LoadedModel:
    """The model as it was before its checkpoint was quantised."""
    if method_of(loaded.config) is None:
        return loaded
    config = copy.deepcopy(loaded.config)
    del config.quantization_config
    return dataclasses.replace(loaded, config=config)


def _with_small_media(loaded: LoadedModel, small: LoadedModel, unequal: Counter[str]) -> tuple[LoadedModel, TrialRun]:
    """A small model that fits together, with smaller images and shorter audio if it runs on them as well."""
    raised = ""
    for config in smaller_media(small.config):
        less = dataclasses.replace(small, config=config)
        if parameters_of(less).kinds != parameters_of(small).kinds:
            continue
        less, outcome = _fitted(loaded, less, unequal)
        if outcome.whole:
            return less, outcome
        if outcome.raised == raised:  # the size is not what it fails on
            return less, outcome
        raised = outcome.raised
    return _fitted(loaded, small, unequal)


_AGREEMENTS = 6
"""Sizes of a twin that are made equal to others, one after the other."""
_GIVEN_UP = 2
"""Small models in which no sizes could be made equal for one kind of failure, before it is not tried again for that kind."""


def _fitted(loaded: LoadedModel, small: LoadedModel, unequal: Counter[str]) -> tuple[LoadedModel, TrialRun]:
    """A small model whose parts fit together: sizes that its forward finds unequal are made equal, one after the other.

    `unequal` counts, by what was raised apart from numbers, the small models for which that did not help.
    """
    outcome = trial_run(small)
    for _ in range(_AGREEMENTS):
        if outcome.error is None or outcome.whole or unequal[_kind(outcome)] >= _GIVEN_UP:
            break
        for config in agreeing(loaded.config, small.config, str(outcome.error)):
            other = dataclasses.replace(small, config=config)
            now = trial_run(other)
            if now.whole or (str(now.error) != str(outcome.error) and now.runs >= outcome.runs):
                small, outcome = other, now
                break
        else:
            unequal[_kind(outcome)] += 1
            break
    return small, outcome


def _kind(outcome: TrialRun) -> str:
    return re.sub(r"\d+", "", outcome.raised)


def raises_on_one_device(loaded: LoadedModel, mode: RunMode) -> bool:
    """Whether a twin raises in this mode on a single device; then clients do not run the model in this mode. False if
    unknown.
    """
    try:
        small = twin(loaded, tp=1)
        torch.manual_seed(0)
        model = build(small, device="cpu")
        model.load_state_dict(random_state(model))
        given = real_inputs(model, SHORT)
        if mode is RunMode.EAGER and isinstance(model, PreTrainedModel):
            model.set_attn_implementation("eager")
    except Exception:  # unknown: clients may run this mode
        return False
    tried = False
    for script in scripts(model, mode, given):
        tried = True
        for name, value in script.tensors.items():
            if name not in given:  # tensors without data: masks, labels, the next token
                value.fill_(1)
        model.train(mode is RunMode.TRAINING)
        try:
            with torch.set_grad_enabled(mode is RunMode.TRAINING):
                script.run(model)
            return False
        except Exception:  # any exception of the model's code: a form with fewer inputs may run
            continue
    return tried


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: products of small matrices wait for other threads longer than they take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
