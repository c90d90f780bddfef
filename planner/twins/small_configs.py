"""Smaller configs of a model, one attempt after the other: by the names of their fields, by their widths, by trial."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from math import gcd

from transformers import PreTrainedConfig

from shardproof.planner.loading.build import build
from shardproof.planner.loading.configs.config_defaults import sectioned
from shardproof.planner.loading.configs.field_roles import Fields, role_of
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.modules.any_module import ModuleConfig
from shardproof.planner.twins.module_sizes import shallow, small_modules
from shardproof.planner.twins.sizes import RUNGS, narrowed, numbers_beside_sizes, shrunk
from shardproof.planner.twins.small_runs import parameters_of, runs_on_meta

_TRIALS = 80


def by_names(loaded: LoadedModel, *, tp: int, pp: int, derive: bool = False) -> Iterator[PreTrainedConfig]:
    """Configs shrunk by the names of their fields, one attempt after the other; deeper if a kind of layer was lost.

    With `derive`, fields that the class can derive are not given; there is none where it can derive nothing.
    """
    config = _with_sections(loaded)
    fields = fields_of(config)
    if derive:
        derived = _derived(config, fields)
        fields = {name: value for name, value in fields.items() if derived and name not in derived}
    for deeper in (1, 2, 4) if fields else ():
        for rung in RUNGS:
            with suppress(Exception):  # a config class may refuse sizes: try the next attempt
                yield rebuilt(config, shrunk(fields, tp=tp, least_layers=2 * pp * deeper, rung=rung))


def shallower(loaded: LoadedModel, *, layers: int) -> LoadedModel:
    """A module with at most this many layers of each stack, and every kind of layer; a Transformers model as it is."""
    if not isinstance(loaded.config, ModuleConfig):
        return loaded
    fields = _module_fields(loaded.config)
    fewer = shallow(fields, least=layers, kinds=partial(_kinds_with, loaded))
    return dataclasses.replace(loaded, config=_with_fields(loaded.config, {**fields, **fewer}))


def of_module(loaded: LoadedModel, *, tp: int, pp: int) -> Iterator[PreTrainedConfig]:
    """Small configs of a module that is no Transformers model; none of a Transformers model."""
    config = loaded.config
    if not isinstance(config, ModuleConfig):
        return
    for small in small_modules(_module_fields(config), tp=tp, least=2 * pp, kinds=partial(_kinds_with, loaded)):
        with suppress(Exception):  # a constructor may refuse sizes
            yield _with_fields(config, small)


def _module_fields(config: ModuleConfig) -> Fields:
    return {name: getattr(config, name) for name in type(config).defaults}


def _with_fields(config: ModuleConfig, fields: Fields) -> PreTrainedConfig:
    return rebuilt(config, {**fields, "declared_inputs": list(config.declared_inputs)})


def _kinds_with(loaded: LoadedModel, fields: Fields) -> frozenset[tuple[str, int]]:
    assert isinstance(loaded.config, ModuleConfig)
    return parameters_of(dataclasses.replace(loaded, config=_with_fields(loaded.config, fields))).kinds


def _derived(config: PreTrainedConfig, fields: Fields) -> set[str]:
    """Fields whose value the class computes from the others where it is not given, such as a sum of two widths."""
    parameters = inspect.signature(type(config).__init__).parameters
    found = set()
    for name, value in fields.items():
        if type(value) is int and name in parameters and parameters[name].default is None:
            with suppress(Exception):  # it cannot be left out
                again = rebuilt(config, {other: given for other, given in fields.items() if other != name})
                if getattr(again, name, None) == value:
                    found.add(name)
    return found


def _with_sections(loaded: LoadedModel) -> PreTrainedConfig:
    """The config with the sections of its rotary frequencies, which the code has where the config does not say them."""
    try:
        return sectioned(loaded.config, build(loaded))
    except Exception:  # the model's code cannot run on the meta device
        return loaded.config


def by_width(config: PreTrainedConfig, *, tp: int, pp: int) -> Iterator[PreTrainedConfig]:
    """Configs whose widths are divided by one factor, the largest factor first; deeper if a kind of layer was lost."""
    fields = fields_of(config)
    for factor in (64, 32, 16, 8, 4, 2):
        for deeper in (1, 2, 4):
            with suppress(Exception):  # a config class may refuse sizes
                yield rebuilt(config, narrowed(fields, tp=tp, least_layers=2 * pp * deeper, factor=factor))


def fields_of(config: PreTrainedConfig) -> Fields:
    """The arguments that would construct this config again: those in its constructor's signature, and other fields it was
    given.

    A class may store a field under another name than its constructor takes (`attribute_map`).
    """
    kind = type(config)
    parameters = inspect.signature(kind.__init__).parameters
    names = set(parameters) | {_OF_LAYERS}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        names |= {field.name for field in dataclasses.fields(kind)} | _beyond(config)
    written = {own: name for name, own in kind.attribute_map.items() if name in names and own not in names}
    given = {written.get(name, name): value for name, value in config.to_dict().items()}
    return {name: value for name, value in given.items() if name in names}


_OF_LAYERS = "per_layer_config"
"""The field with sizes of single layers (transformers 5.23.0, integrations/heterogeneity/configuration_utils.py)."""


def _beyond(config: PreTrainedConfig) -> set[str]:
    """The fields of a config.json that the class neither takes nor derives; Transformers keeps them unchanged."""
    try:
        return set(vars(config)) - set(vars(type(config)()))
    except Exception:  # a class that has no defaults
        return set()


def rebuilt(config: PreTrainedConfig, fields: Fields) -> PreTrainedConfig:
    """A config of the same class with these fields; derived fields are derived again.

    Experts run one by one, because the grouped kernel does not support float64.
    """
    make: Callable[..., PreTrainedConfig] = type(config)
    made = make(**fields)
    made._experts_implementation = "eager"
    return made


def by_trial(loaded: LoadedModel, *, tp: int, pp: int) -> PreTrainedConfig:
    """The config with integer fields halved, one or two at a time, while the model still builds and gets smaller."""
    best, size = beside_sizes(loaded), parameters_of(loaded).count
    for _ in range(_TRIALS):
        if size <= SMALL:
            break
        for config in _halvings(best, tp=tp, pp=pp):
            smaller = dataclasses.replace(loaded, config=config)
            if (now := parameters_of(smaller).count) < size and runs_on_meta(smaller):
                best, size = config, now
                break
        else:
            break
    return best


def beside_sizes(loaded: LoadedModel) -> PreTrainedConfig:
    """The config with a twin's values for fields that are no sizes (no dropout, multipliers other than 1), if it builds
    with them.
    """
    with suppress(Exception):  # a config class may refuse values
        fields = fields_of(loaded.config)
        made = rebuilt(loaded.config, fields | numbers_beside_sizes(fields, scaled=True))
        build(dataclasses.replace(loaded, config=made))
        return made
    return loaded.config


def _halvings(config: PreTrainedConfig, *, tp: int, pp: int) -> Iterator[PreTrainedConfig]:
    fields = fields_of(config)
    halves = {
        name: value // 2
        for name, value in fields.items()
        if type(value) is int and value >= 16 and value % 2 == 0 and gcd(value // 2, tp) == gcd(value, tp)
    }
    halves |= {
        name: max(value // 2, 2 * pp)
        for name, value in fields.items()
        if type(value) is int and role_of(name) == "layers" and value > 2 * pp
    }
    names = sorted(halves, key=lambda name: -halves[name])
    pairs = [(a, b) for index, a in enumerate(names) for b in names[index + 1 :]]
    for chosen in [*((name,) for name in names), *pairs]:
        with suppress(Exception):  # a config class may refuse sizes
            yield rebuilt(config, fields | {name: halves[name] for name in chosen})


SMALL = 4_000_000
"""A model with at most this many parameters is small enough; a twin by field names is far smaller."""
