"""The twin: a small model with the same structure and random weights.

A wrong plan is wrong at any size, so it is tested at a small size in float64, where a fault cannot be confused with rounding.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from math import gcd

import torch
from torch import nn
from torch.utils._pytree import tree_flatten
from transformers import PreTrainedConfig

from shardproof.planner.inputs.example import Sizes, caching, token_inputs
from shardproof.planner.inputs.numbers import fullest_inputs, real_inputs
from shardproof.planner.inputs.run_modes import RunMode, scripts
from shardproof.planner.ir.errors import ShardproofError, reason
from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.adapters.adapted_class import without_dropout
from shardproof.planner.loading.build import build
from shardproof.planner.loading.configs.config_defaults import sectioned
from shardproof.planner.loading.configs.field_roles import Fields, role_of
from shardproof.planner.loading.load import LoadedModel, with_adapter_classes
from shardproof.planner.loading.modules.any_module import ModuleConfig
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.loading.source_lines import line_of
from shardproof.planner.twins.agreement import agreeing
from shardproof.planner.twins.module_sizes import shallow, small_modules
from shardproof.planner.twins.sizes import RUNGS, narrowed, numbers_beside_sizes, shrunk

SMALL = 4_000_000
"""A model with at most this many parameters is small enough; a twin by field names is far smaller."""
NARROW = 20_000_000
"""The most parameters of a twin where there is none of `SMALL`."""
LARGEST = 50_000_000
"""The most parameters of a twin; above it, a float64 model and its gradients do not fit in the memory of a small machine."""
_NEUTRAL = 1e3
"""A vector with a value of at least this magnitude, or NaN, is memory that its constructor did not initialise."""
_TRIALS = 80
_SHORT = Sizes(2, 5, 5)
_PATIENCE = 4
"""Small models that run on text alone, before one of them is taken."""


class TwinError(ShardproofError, ValueError):
    """No small model with the same structure was found; the message says what would help."""


def twin(loaded: LoadedModel, *, tp: int, pp: int = 1) -> LoadedModel:
    """A small model with the same structure, for `tp` ranks and `pp` stages.

    Kept are every kind of layer, the ratio of query to KV heads, and whether each size divides by `tp`.

    Raises:
        TwinError: the config's fields can be shrunk neither by their names nor by trial, and the model is too large to run
            as it is.
    """
    if loaded.adapters:
        loaded = with_adapter_classes(loaded, tuple(map(without_dropout, loaded.adapters)))
    with quiet():
        kinds, text_alone, first, patience = _kinds(loaded), None, "", _PATIENCE
        for most, config in chain(
            ((SMALL, config) for config in _of_module(loaded, tp=tp, pp=pp)),
            ((SMALL, config) for config in _by_names(loaded, tp=tp, pp=pp)),
            ((SMALL, config) for config in [_beside_sizes(loaded)]),
            ((NARROW, config) for config in _by_width(loaded.config, tp=tp, pp=pp)),
            ((NARROW, config) for derive in (False, True) for config in _by_names(loaded, tp=tp, pp=pp, derive=derive)),
        ):
            small = dataclasses.replace(loaded, config=config, checkpoint=None)
            if _parameters(small) > most or (kinds and _kinds(small) != kinds):
                continue
            small, outcome = _fitted(loaded, small)
            if outcome.whole:
                return small
            first = first or outcome.raised
            if outcome.runs:
                text_alone, patience = text_alone or small, patience - 1
            if not patience:
                break
        if text_alone is not None:
            return text_alone
        small = dataclasses.replace(loaded, config=_by_trial(loaded, tp=tp, pp=pp), checkpoint=None)
        if _parameters(small) <= LARGEST and runs(small):
            return small
    why = f" The first small copy that was built raised {first}." if first else ""
    raise TwinError(
        f"No small twin of {loaded.title} was found: give small sizes with --set, so that it stays below "
        f"{LARGEST // 1_000_000} million parameters.{why}"
    )


def runs(loaded: LoadedModel) -> bool:
    """Whether the model builds on the CPU and its forward gives finite numbers."""
    return _outcome(loaded).runs


@dataclasses.dataclass(frozen=True, slots=True)
class _Outcome:
    """Whether a small model runs; `error` is what it raised, on all that it takes where it runs on text alone."""

    runs: bool
    error: Exception | None = None

    @property
    def whole(self) -> bool:
        """Whether it runs on all that it takes."""
        return self.runs and self.error is None

    @property
    def raised(self) -> str:
        """The exception, with its line."""
        if self.error is None:
            return ""
        at = line_of(self.error, None)
        return f"{reason(self.error)}{f' ({at})' if at else ''}"


def _outcome(loaded: LoadedModel) -> _Outcome:
    refused: Exception | None = None
    try:
        torch.manual_seed(0)
        model = build(loaded, device="cpu")
        model.load_state_dict(random_state(model))  # some constructors leave memory uninitialised
        given, refused = fullest_inputs(model, _SHORT)
        with torch.no_grad():
            finite = all(
                bool(torch.isfinite(value).all()) for value in first_tensors(model(**given, **caching(model, False)))
            )
        return _Outcome(finite, refused if finite else ArithmeticError("its forward gives numbers that are not finite"))
    except Exception as error:  # any failure of the model's code only means that this size does not work
        return _Outcome(False, refused or error)


def first_tensors(output: object) -> list[torch.Tensor]:
    """The tensors of the first output, which may be a list of them."""
    first = output[0] if isinstance(output, tuple | list) or hasattr(output, "keys") else output  # type: ignore[index]
    return [leaf for leaf in tree_flatten(first)[0] if isinstance(leaf, torch.Tensor)]


_AGREEMENTS = 6
"""Sizes of a twin that are made equal to others, one after the other."""


def _fitted(loaded: LoadedModel, small: LoadedModel) -> tuple[LoadedModel, _Outcome]:
    """A small model whose parts fit together: sizes that its forward finds unequal are made equal, one after the other."""
    outcome = _outcome(small)
    for _ in range(_AGREEMENTS):
        if outcome.error is None or outcome.whole:
            break
        for config in agreeing(loaded.config, small.config, str(outcome.error)):
            other = dataclasses.replace(small, config=config)
            now = _outcome(other)
            if now.whole or (str(now.error) != str(outcome.error) and now.runs >= outcome.runs):
                small, outcome = other, now
                break
        else:
            break
    return small, outcome


def raises_on_one_device(loaded: LoadedModel, mode: RunMode) -> bool:
    """Whether a twin raises in this mode on a single device; then clients do not run the model in this mode. False if
    unknown.
    """
    try:
        small = twin(loaded, tp=1)
        torch.manual_seed(0)
        model = build(small, device="cpu")
        model.load_state_dict(random_state(model))
        given = real_inputs(model, _SHORT)
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


def random_state(model: nn.Module, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """A float64 state dict for a model that was built on the CPU, in which no tensor has its neutral value.

    Matrices are normally distributed and scaled to keep activations near 1. Vectors (norm weights, biases, sinks, per-head
    constants) vary around the value that the model initialises them with: a zero bias would hide a bias added once per
    rank, and a unit norm weight a missing all-reduce of its gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    drawn: dict[int, torch.Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in drawn:
            made = _drawn(value.detach(), generator)
            drawn[id(value)] = made.abs() + 0.1 if name.endswith("running_var") else made  # a variance is positive
        state[name] = drawn[id(value)]
    return state


def _drawn(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not value.is_floating_point():
        return value.clone()
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    if value.ndim >= 2:
        return noise / math.sqrt(value.shape[-1])
    made = value.double()
    return torch.where(made.abs() < _NEUTRAL, made, 1.0) + 0.3 * noise


def _by_names(loaded: LoadedModel, *, tp: int, pp: int, derive: bool = False) -> Iterator[PreTrainedConfig]:
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


def _of_module(loaded: LoadedModel, *, tp: int, pp: int) -> Iterator[PreTrainedConfig]:
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
    return _kinds(dataclasses.replace(loaded, config=_with_fields(loaded.config, fields)))


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


def _by_width(config: PreTrainedConfig, *, tp: int, pp: int) -> Iterator[PreTrainedConfig]:
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


def _kinds(loaded: LoadedModel) -> frozenset[tuple[str, int]]:
    """Every parameter pattern with its number of dims; empty if the model cannot be built."""
    try:
        model = build(loaded)
    except Exception:  # the model's code cannot run on the meta device
        return frozenset()
    return frozenset((generic(name), parameter.ndim) for name, parameter in model.named_parameters())


def _parameters(loaded: LoadedModel) -> int:
    try:
        return sum(parameter.numel() for parameter in build(loaded).parameters())
    except Exception:  # cannot be built on the meta device: counts as too large, and is never built on the CPU
        return LARGEST + 1


def _by_trial(loaded: LoadedModel, *, tp: int, pp: int) -> PreTrainedConfig:
    """The config with integer fields halved, one or two at a time, while the model still builds and gets smaller."""
    best, size = _beside_sizes(loaded), _parameters(loaded)
    for _ in range(_TRIALS):
        if size <= SMALL:
            break
        for config in _halvings(best, tp=tp, pp=pp):
            smaller = dataclasses.replace(loaded, config=config)
            if (now := _parameters(smaller)) < size and _forwards(smaller):
                best, size = config, now
                break
        else:
            break
    return best


def _beside_sizes(loaded: LoadedModel) -> PreTrainedConfig:
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


def _forwards(loaded: LoadedModel) -> bool:
    """Whether the model's forward runs on the meta device."""
    try:
        with torch.no_grad():
            model = build(loaded)
            ids = torch.zeros(2, 5, dtype=torch.long, device="meta")
            model(**dict.fromkeys(token_inputs(model), ids), use_cache=False)
    except Exception:  # shapes that do not fit, or code that cannot run on the meta device
        return False
    return True
