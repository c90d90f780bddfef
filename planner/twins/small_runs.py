"""Does a small model build and run, and what is it made of?"""

import dataclasses

import torch
from torch.utils._pytree import tree_flatten

from shardproof.planner.inputs.example import Sizes, caching, token_inputs
from shardproof.planner.inputs.numbers import fullest_inputs
from shardproof.planner.ir.errors import reason
from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.source_lines import line_of
from shardproof.planner.twins.random_state import random_state

LARGEST = 50_000_000
"""The most parameters of a twin; above it, a float64 model and its gradients do not fit in the memory of a small machine."""


SHORT = Sizes(2, 5, 5)


def runs(loaded: LoadedModel) -> bool:
    """Whether the model builds on the CPU and its forward gives finite numbers."""
    return trial_run(loaded).runs


@dataclasses.dataclass(frozen=True, slots=True)
class TrialRun:
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


def trial_run(loaded: LoadedModel) -> TrialRun:
    """Build a small model on the CPU with random weights, and run its forward on all that it takes."""
    refused: Exception | None = None
    try:
        torch.manual_seed(0)
        model = build(loaded, device="cpu")
        model.load_state_dict(random_state(model))  # some constructors leave memory uninitialised
        given, refused = fullest_inputs(model, SHORT)
        with torch.no_grad():
            finite = all(
                bool(torch.isfinite(value).all()) for value in first_tensors(model(**given, **caching(model, False)))
            )
        return TrialRun(finite, refused if finite else ArithmeticError("its forward gives numbers that are not finite"))
    except Exception as error:  # any failure of the model's code only means that this size does not work
        return TrialRun(False, refused or error)


def first_tensors(output: object) -> list[torch.Tensor]:
    """The tensors of the first output, which may be a list of them."""
    first = output[0] if isinstance(output, tuple | list) or hasattr(output, "keys") else output  # type: ignore[index]
    return [leaf for leaf in tree_flatten(first)[0] if isinstance(leaf, torch.Tensor)]


@dataclasses.dataclass(frozen=True, slots=True)
class ParametersBuilt:
    """The parameters of a model: the number of their elements, and every pattern of their names with the number of dims.

    `raised` is what building the model raised.
    """

    count: int
    kinds: frozenset[tuple[str, int]]
    raised: str = ""


def parameters_of(loaded: LoadedModel) -> ParametersBuilt:
    """The parameters of a model, built on the meta device. One that cannot be built there counts as too large and without
    kinds, and is never built on the CPU.
    """
    try:
        named = dict(build(loaded).named_parameters())
    except Exception as error:  # the model's code cannot run on the meta device
        return ParametersBuilt(LARGEST + 1, frozenset(), reason(error))
    kinds = frozenset((generic(name), parameter.ndim) for name, parameter in named.items())
    return ParametersBuilt(sum(parameter.numel() for parameter in named.values()), kinds)


def runs_on_meta(loaded: LoadedModel) -> bool:
    """Whether the model's forward runs on the meta device."""
    try:
        with torch.no_grad():
            model = build(loaded)
            ids = torch.zeros(2, 5, dtype=torch.long, device="meta")
            model(**dict.fromkeys(token_inputs(model), ids), use_cache=False)
    except Exception:  # shapes that do not fit, or code that cannot run on the meta device
        return False
    return True
