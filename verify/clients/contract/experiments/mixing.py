"""Does a token see another one outside of the attention?

The attention is answered by each token's own query, key and value alone. Then three tokens of the input are exchanged: the
first, one in the middle, the last. Whatever else changes was mixed by the model itself: by a token shift, a convolution, a
recurrence, an attention of its own. An engine runs a step with the new tokens alone and keeps a cache only behind the attention
interface, so all of those lose what came before.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from shardproof.planner.ir.findings import Source
from shardproof.verify.clients.contract.experiments.client_attention import (
    AttentionCall,
    AttentionRecorder,
    repeated,
)
from shardproof.verify.clients.contract.experiments.engine_run import Prompt, run_as_engine
from shardproof.verify.clients.contract.experiments.op_log import OpLog, logged_inside
from shardproof.verify.clients.contract.experiments.trial import Trial, built_with, registered

NAME = "shardproof_alone"
TOKENS = 13
EXCHANGED = (0, 6, 12)
"""The tokens that are exchanged, of so many: what looks at the first or the last token alone is seen too."""
_CHANGED = 1e-6


@dataclass(frozen=True, slots=True)
class Mixing:
    """A module in which a token sees another one: `operation` and `source` say where, as far as that was found."""

    path: str
    module: str
    operation: str
    source: Source | None


def mixing_modules(trial: Trial, prompt: Prompt) -> list[Mixing]:
    """The innermost modules that mix tokens, the first of each class. Raises whatever the model raises."""
    recorder = AttentionRecorder({}, _alone_rows)
    model = built_with(trial, NAME, recorder)
    tokens = prompt.tokens[:, :1].expand(1, TOKENS).clone()
    tokens[0] = prompt.tokens.flatten().repeat(TOKENS)[:TOKENS]
    other = tokens.clone()
    for at in EXCHANGED:
        other[0, at] = _another(trial, prompt, int(tokens[0, at]))
    with registered(NAME, recorder):
        runs = [_watched(trial, model, row) for row in (tokens, other)]
        mixers = _mixers(*runs)
        found: dict[str, Mixing] = {}
        for path in mixers:
            kind = type(model.get_submodule(path)).__name__
            if kind not in found:
                found[kind] = Mixing(path, kind, *_operation(trial, model, path, tokens, other))
    return list(found.values())


def _another(trial: Trial, prompt: Prompt, token: int) -> int:
    return next(
        (int(one) for one in prompt.tokens.flatten() if int(one) != token), (token + 1) % max(trial.vocabulary, 2)
    )


def _alone_rows(call: AttentionCall) -> Tensor:
    """Each token's own value, with a part that shows a change of its query and key: `(tokens, heads * width)`."""
    value = repeated(call.value, call.query)
    own = [one.double().mean(dim=(1, 3))[:, None, :, None] for one in (call.query, call.key)]
    answer = value + 0.1 * sum(own).to(value.dtype) if all(one.shape[2] == value.shape[2] for one in own) else value  # type: ignore[union-attr]  # a sum of tensors
    return answer[0].transpose(0, 1).reshape(value.shape[2], -1)


@dataclass
class _ModuleRun:
    """What each call of a module was given and gave: tensors with a dimension of all tokens."""

    path: str
    given: list[Tensor]
    made: list[Tensor] = field(default_factory=list)


def _tensors(value: Any) -> list[Tensor]:
    return [one.detach().clone() for one in tree_leaves(value) if isinstance(one, Tensor) and one.is_floating_point()]


def _watched(trial: Trial, model: nn.Module, tokens: Tensor) -> list[_ModuleRun]:
    runs: list[_ModuleRun] = []
    open_: list[_ModuleRun] = []
    handles = []
    for path, module in model.named_modules():

        def enter(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            runs.append(_ModuleRun(path, _tensors((args, kwargs))))
            open_.append(runs[-1])

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            open_.pop().made = _tensors(output)

        handles += [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]
    try:
        run_as_engine(trial, model, tokens, (TOKENS,), {})
    finally:
        for handle in handles:
            handle.remove()
    return runs


def _mixers(first: list[_ModuleRun], second: list[_ModuleRun]) -> list[str]:
    """Paths of the innermost modules that are given a change at one token and give one at others, in the order of calls."""
    mixing = []
    for one, other in _pairs(first, second):
        beyond_given = any(_beyond(a, b) for a, b in zip(one.given, other.given, strict=False))
        if not beyond_given and any(_beyond(a, b) for a, b in zip(one.made, other.made, strict=False)):
            mixing.append(one.path)
    return [path for path in mixing if not any(other != path and _inside(other, path) for other in mixing)]


def _pairs(first: list[_ModuleRun], second: list[_ModuleRun]) -> list[tuple[_ModuleRun, _ModuleRun]]:
    """The same call of the same module in both runs; an expert may be called in one of them alone."""
    rest: dict[str, list[_ModuleRun]] = {}
    for run in second:
        rest.setdefault(run.path, []).append(run)
    return [(run, rest[run.path].pop(0)) for run in first if rest.get(run.path)]


def _inside(path: str, outer: str) -> bool:
    return not outer or path.startswith(f"{outer}.")


def _beyond(first: Tensor, second: Tensor) -> bool:
    """Whether two results differ at a token that was not exchanged. Each dimension of `TOKENS` entries counts the tokens."""
    if first.shape != second.shape:
        return False
    axes = [axis for axis, size in enumerate(first.shape) if size == TOKENS]
    if not axes:
        return False
    changed = (first.double() - second.double()).abs() > _CHANGED * (float(first.double().abs().max()) or 1.0)
    changed = changed | (torch.isfinite(first) != torch.isfinite(second))
    for axis in axes:
        others = [at for at in range(TOKENS) if at not in EXCHANGED]
        changed = changed.index_select(axis, torch.tensor(others))
    return bool(changed.any())


def _operation(trial: Trial, model: nn.Module, path: str, tokens: Tensor, other: Tensor) -> tuple[str, Source | None]:
    """The first operation of a module whose result differs at other tokens."""
    logs = [_logged(trial, model, path, row) for row in (tokens, other)]
    for first, second in zip(logs[0].ops, logs[1].ops, strict=False):
        if first.name != second.name or first.value is None or second.value is None:
            continue
        if _beyond(first.value, second.value):
            return first.name, first.source
    return "", None


def _logged(trial: Trial, model: nn.Module, path: str, tokens: Tensor) -> OpLog:
    return logged_inside(
        model.get_submodule(path),
        lambda: run_as_engine(trial, model, tokens, (TOKENS,), {}),
        lambda one: one.is_floating_point() and TOKENS in one.shape,
    )
