"""Does the model's own attention function compute what a client's attention computes?

The model is run with its own function (`eager`), and the arguments of every attention module are kept. Each module is run on them
once more, with the reference attention in the place of the function: with the mask, the scale, the soft-cap and the sinks that
the call passes. A client computes no more than that, so that a difference is lost there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from shardproof.planner.inputs.example import caching
from shardproof.planner.loading.configs.config_fields import field_of
from shardproof.verify.clients.contract.experiments.client_attention import (
    AttentionCall,
    AttentionRecorder,
    AttentionSpec,
    as_interface,
    attend,
    repeated,
    visible,
)
from shardproof.verify.clients.contract.experiments.engine_run import Prompt, gap
from shardproof.verify.clients.contract.experiments.op_log import OpLog
from shardproof.verify.clients.contract.experiments.score_path import Departure, ScoreExplanation, explain
from shardproof.verify.clients.contract.experiments.trial import Trial, built_with, registered

NAME = "shardproof_reference"
LONG = 80
"""Tokens of the sequence that the functions are given, as far as the model takes so many."""
HIGHEST = 60.0
"""The highest score of a run with larger inputs: it shows bounds that no score of random weights comes near."""
_COARSER = 30.0
"""How much coarser larger scores are compared: their rounding errors grow with them."""
_HIDDEN = -1e3
"""An additive mask below this hides a key."""


@dataclass(frozen=True, slots=True)
class FunctionDifference:
    """One attention module whose function is not the reference; `size` is relative to the largest output."""

    call: AttentionCall
    size: float
    explanation: ScoreExplanation


@dataclass(frozen=True, slots=True)
class _AttentionCall:
    """What one attention module was given, and what it returned first."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor


@dataclass(frozen=True, slots=True)
class _Reference:
    """The model with the reference attention, which `recorder` answers."""

    model: nn.Module
    recorder: AttentionRecorder


def spec_of(call: AttentionCall) -> AttentionSpec:
    """The attention that a call of the interface asks for, with the mask as it was given."""
    sinks = call.options.get("s_aux")
    mask = call.mask if isinstance(call.mask, Tensor) else None
    allowed, bias = (visible(call.query.shape[2], AttentionSpec(1.0)), None) if mask is None else split_mask(mask)
    return AttentionSpec(
        call.scale,
        softcap=call.number("softcap"),
        sinks=sinks if isinstance(sinks, Tensor) else None,
        allowed=allowed,
        bias=bias,
    )


def split_mask(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """A mask as which keys are seen, and what is added to their scores (None for nothing).

    All are `(rows, heads, queries, keys)`.
    """
    if not mask.is_floating_point():
        return mask.bool(), None
    allowed = mask > _HIDDEN
    bias = torch.where(allowed, mask, 0.0).double()
    count = allowed.sum(dim=-1, keepdim=True).clamp_min(1)
    beside = torch.where(allowed, bias - bias.sum(dim=-1, keepdim=True) / count, 0.0)  # a constant changes no softmax
    return allowed, bias if bool(beside.abs().max() > 1e-9) else None


def own_differences(trial: Trial, prompt: Prompt, paths: tuple[str, ...]) -> list[FunctionDifference]:
    """The attention modules (at `paths`) whose own function is not the reference, one for each class of module.

    Raises whatever the model raises when it runs with its own function.
    """
    own = trial.built("eager")
    found: dict[type, FunctionDifference] = {}
    recorder = AttentionRecorder({}, _reference)
    other = _Reference(built_with(trial, NAME, recorder), recorder)
    row = max(prompt.rows, key=lambda one: one.shape[1])
    given: dict[str, _AttentionCall] = {}
    for tokens in dict.fromkeys((row, _longer(trial, row))):
        given = _run(trial, own, tokens, paths)
        _compare(own, other, given, found, trial.tolerance)
    _compare(own, other, given, found, trial.tolerance * _COARSER, larger=True)
    return list(found.values())


def _compare(
    own: nn.Module,
    other: _Reference,
    given: Mapping[str, _AttentionCall],
    found: dict[type, FunctionDifference],
    tolerance: float,
    *,
    larger: bool = False,
) -> None:
    """Put the first difference of each class of module in `found`; all modules in their order, for one may leave another
    something.
    """
    for path, one in given.items():
        kind = type(own.get_submodule(path))
        if larger and kind not in found:
            difference = _with_larger_scores(own, other, path, one, tolerance)
        else:
            difference = _difference(own, other, path, one, tolerance) if kind not in found else None
        if difference is not None and difference.size > tolerance:
            found[kind] = difference


def _reference(call: AttentionCall) -> Tensor:
    return as_interface(attend(call.query, call.key, call.value, spec_of(call)))


def _run(trial: Trial, model: nn.Module, tokens: Tensor, paths: tuple[str, ...]) -> dict[str, _AttentionCall]:
    """The arguments and the first output of each attention module, in a run of one sequence."""
    found: dict[str, _AttentionCall] = {}
    handles = []
    for path in paths:

        def keep(_: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            first = _first(output)
            if first is not None and path not in found:
                found[path] = _AttentionCall(_copied(args), _copied(kwargs), first.clone())

        handles.append(model.get_submodule(path).register_forward_hook(keep, with_kwargs=True))
    base = trial.base(model)
    try:
        with torch.no_grad():
            base(input_ids=tokens, **caching(base, False))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _copied(given: Any) -> Any:
    return tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, given)


def _first(output: Any) -> Tensor | None:
    return next((one for one in tree_leaves(output) if isinstance(one, Tensor)), None)


def _longer(trial: Trial, row: Tensor) -> Tensor:
    """A row of `LONG` tokens; that row itself where the model ends before."""
    longest = field_of(trial.text, "max_position_embeddings")
    if not isinstance(longest, int) or longest < LONG:
        return row
    return row.repeat(1, -(-LONG // row.shape[1]))[:, :LONG]


def _with_larger_scores(
    own: nn.Module, other: _Reference, path: str, given: _AttentionCall, tolerance: float
) -> FunctionDifference | None:
    """The difference on the same hidden states times a number that makes the highest score `HIGHEST`."""
    plain = _difference(own, other, path, given, float("inf"))
    if plain is None:
        return None
    query, key = plain.call.query.double(), repeated(plain.call.key, plain.call.query).double()
    highest = float((query @ key.transpose(-1, -2) * plain.call.scale).abs().max())
    times = (HIGHEST / max(highest, 1e-6)) ** 0.5
    more = _with_larger_states(own.get_submodule(path), given, times) if times > 1 else None
    return _difference(own, other, path, more, tolerance) if more is not None else None


def _difference(
    own: nn.Module, other: _Reference, path: str, given: _AttentionCall, tolerance: float
) -> FunctionDifference | None:
    """What the reference makes of the same arguments; None where the module does not call the interface once."""
    other.recorder.calls.clear()
    with registered(NAME, other.recorder), torch.no_grad():
        output = _first(other.model.get_submodule(path)(*_copied(given.args), **_copied(given.kwargs)))
    if output is None or len(other.recorder.calls) != 1:
        return None
    size = gap(output, given.output)
    call = other.recorder.calls[0]
    why = _explained(own, path, given, call) if size > tolerance else ScoreExplanation(Departure.UNKNOWN, None)
    return FunctionDifference(call, size, why)


def _with_larger_states(module: nn.Module, given: _AttentionCall, times: float) -> _AttentionCall | None:
    """The arguments of a module with its hidden states times a number, and what it returns for them."""
    states = next((one for one in tree_leaves((given.args, given.kwargs)) if _is_states(one, given.output)), None)
    if states is None:
        return None
    args, kwargs = tree_map(lambda one: one * times if one is states else one, (given.args, dict(given.kwargs)))
    with torch.no_grad():
        output = _first(module(*_copied(args), **_copied(kwargs)))
    return _AttentionCall(args, kwargs, output.clone()) if output is not None else None


def _is_states(one: object, output: Tensor) -> bool:
    return isinstance(one, Tensor) and one.is_floating_point() and one.shape == output.shape


def _explained(own: nn.Module, path: str, given: _AttentionCall, call: AttentionCall) -> ScoreExplanation:
    value = repeated(call.value, call.query).double()
    products = call.query.double() @ repeated(call.key, call.query).double().transpose(-1, -2)
    wanted = {products.numel(), value.numel()}
    log = OpLog(lambda one: one.numel() in wanted)
    with torch.no_grad(), log:
        own.get_submodule(path)(*_copied(given.args), **_copied(given.kwargs))
    allowed = spec_of(call).allowed
    assert allowed is not None
    return explain(log.ops, products, allowed, value, call.scale)
