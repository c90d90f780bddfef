"""Compare the answers of two models: every quantity with its relative error and its limit."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from shardproof.planner.weights.shards import whole
from shardproof.verify.run.compare.module_activations import ModuleActivations
from shardproof.verify.run.compare.tensors import (
    FLOOR,
    LIMIT,
    Comparison,
    factor_between,
    floor,
    relative_error,
    repetition_limit,
)
from shardproof.verify.run.gradient_questions import ONCE, TWICE
from shardproof.verify.run.observed import Observed

Limits = Mapping[tuple[str, str], float]
"""Relative limits by quantity and place; others have the limit of float64."""


def weights(got: nn.Module, want: nn.Module) -> list[Comparison]:
    """Compare every parameter, all-gathered from the ranks, bit for bit."""
    held = dict(got.named_parameters())
    return [
        Comparison("weights", relative_error(whole(held[name]), value) if name in held else float("inf"), 0.0, name)
        for name, value in want.named_parameters()
    ]


def compared(got: Observed, want: Observed, limits: Limits, *, streams: Iterable[str] = ()) -> list[Comparison]:
    """Compare all that both models answered. `streams` are modules whose output hidden states are whole on every rank."""
    return [
        *_hidden(got.activations, want.activations, limits, frozenset(streams)),
        *_values(got, want, limits),
        *_tokens(got, want, limits),
        *_gradients(got, want, limits),
    ]


def streams(model: nn.Module, planned: Iterable[str]) -> list[str]:
    """Paths of modules whose output hidden states are whole: members of the outermost module lists, but for those with an entry
    of their own (`planned`).
    """
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    items = [f"{name}.{index}" for name in outer for index, _ in enumerate(model.get_submodule(name).children())]
    taken = set(planned)
    return [item for item in items if item not in taken]


def _hidden(
    got: Iterable[ModuleActivations], want: Iterable[ModuleActivations], limits: Limits, streams: frozenset[str]
) -> list[Comparison]:
    found = []
    for mine, right in zip(got, want, strict=False):
        if mine.module in streams and mine.module == right.module and right.given is not None:
            error = relative_error(mine.given, right.given) if mine.given is not None else float("inf")
            found.append(_comparison("hidden states", error, limits, mine.module))
    return found


def _values(got: Observed, want: Observed, limits: Limits) -> list[Comparison]:
    both = [name for name in want.values if name in got.values]
    found = [_comparison(name, relative_error(got.values[name], want.values[name]), limits) for name in both]
    return [*found, *_recomputed(got, want, limits)]


def _recomputed(got: Observed, want: Observed, limits: Limits) -> list[Comparison]:
    """Decoding with the KV cache against the full forward of the same model, where the two agree on one device."""
    name = "decoded logits against a full forward"
    own = [_against_full(answers) for answers in (got, want)]
    limit = limits.get((name, ""), LIMIT)
    if own[0] is None or own[1] is None or own[1] > limit:
        return []
    return [Comparison(name, own[0], limit)]


def _against_full(answers: Observed) -> float | None:
    decoded, full = answers.values.get("decoded logits"), answers.values.get("logits")
    return None if decoded is None or full is None or full.ndim != 3 else relative_error(decoded, full)


def _tokens(got: Observed, want: Observed, limits: Limits) -> list[Comparison]:
    """Generated tokens must be equal up to the first step at which the lead of the right token is within rounding."""
    found = []
    for name, right in want.tokens.items():
        if name not in got.tokens:
            continue
        decided = (right.lead > limits.get(("logits", ""), LIMIT)).long().cumprod(1).bool()
        mine = got.tokens[name].chosen
        differ = mine.shape != right.chosen.shape or bool((mine != right.chosen)[decided].any())
        found.append(Comparison(name, float(differ), 0.0))
    return found


def _gradients(got: Observed, want: Observed, limits: Limits) -> list[Comparison]:
    found = []
    for what, gradients in want.gradients.items():
        if what not in got.gradients:
            continue
        scales = _scales(gradients)
        for name, gradient in gradients.items():
            mine = got.gradients[what].get(name)
            repeated = _repeated(got, want, name) if what == TWICE and mine is not None else None
            if mine is not None and repeated is not None:
                found.append(_twice(mine, repeated, name, scale=scales[name]))
                continue
            error = float("inf") if mine is None else relative_error(mine, gradient, floor=scales[name])
            compared = _comparison(what, error, limits, name)
            if mine is not None and not compared.right:
                compared = replace(compared, factor=factor_between(mine, gradient))
            found.append(compared)
    return found


def _repeated(got: Observed, want: Observed, name: str) -> torch.Tensor | None:
    """What the ranks' own gradient is after two backwards, twice the first, if that holds on one device; else None.

    Held against the ranks' own first gradient, an accumulated one is wrong or right at every precision: rounding is far below
    the gradient itself, also where it is not far below the difference between ranks and one device.
    """
    alone, ranks = (answers.gradients.get(ONCE, {}).get(name) for answers in (want, got))
    if alone is None or ranks is None:
        return None
    repeats = relative_error(want.gradients[TWICE][name], 2 * alone) <= repetition_limit(alone.dtype)
    return 2 * ranks if repeats else None


def _twice(mine: torch.Tensor, repeated: torch.Tensor, name: str, *, scale: float) -> Comparison:
    """Compare with a repeated gradient; `scale` is that of a gradient which is rounding alone."""
    limit = repetition_limit(mine.dtype)
    rounding = not repeated.numel() or float(repeated.abs().max()) < FLOOR * scale
    error = relative_error(mine, repeated, floor=scale if rounding else 0.0)
    right = error <= limit
    return Comparison(TWICE, error, limit, name, 0.0 if right else factor_between(mine, repeated, limit=limit))


def _scales(gradients: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The least scale of each gradient: the largest of its module, and a small part of the largest of all.

    Gradients of one module are sums of the same terms. The gradient of a key projection's bias is zero in exact arithmetic,
    since a softmax does not change when all its inputs move alike; what is left of it is rounding, on the scale of the weight's
    gradient.
    """
    sizes = {name: float(value.abs().max()) if value.numel() else 0.0 for name, value in gradients.items()}
    largest = max(sizes.values(), default=0.0)
    modules: dict[str, float] = {}
    for name, size in sizes.items():
        module = name.rpartition(".")[0]
        modules[module] = max(modules.get(module, 0.0), size)
    return {
        name: max(modules[name.rpartition(".")[0]], floor(value.dtype) * largest) for name, value in gradients.items()
    }


def _comparison(what: str, error: float, limits: Limits, place: str = "") -> Comparison:
    return Comparison(what, error, limits.get((what, place), LIMIT), place)


def limits_of(moved: Iterable[Iterable[Comparison]], *, factor: float, least: float) -> dict[tuple[str, str], float]:
    """The limit of each quantity: `factor` times the furthest that it moved under small changes, at least `least`."""
    found: dict[tuple[str, str], float] = {}
    for comparisons in moved:
        for one in comparisons:
            key = (one.what, one.place)
            found[key] = max(found.get(key, least), factor * one.error)
    return found


def perturbed(model: nn.Module, *, seed: int) -> dict[str, torch.Tensor]:
    """The model's state with every weight moved one unit in its last place, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _nudged(value, generator) for name, value in model.state_dict().items()}


def _nudged(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    signs = torch.randint(2, value.shape, generator=generator, dtype=torch.int8).to(value.device) * 2 - 1
    return (value.double() * (1 + torch.finfo(value.dtype).eps * signs.double())).to(value.dtype)
