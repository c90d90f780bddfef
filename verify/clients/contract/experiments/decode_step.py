"""Is a token that is run alone, as in decoding, the same as in its sequence?

An engine decodes one token at a time, with its position in `position_ids`; the tokens before it are in the attention's cache, and
the next step may belong to another request. Runs of one model ask for it: a sequence, a token of its middle alone, the same token
after another sequence, and the token in one row with that of another place, as tokens of several requests are decoded. Each
attention of these runs is answered by what its tokens were given in their sequence, so that every query, key and value has to be
the same.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from shardproof.planner.ir.findings import Source
from shardproof.verify.clients.contract.experiments.client_attention import (
    AttentionCall,
    AttentionRecorder,
    as_rows,
    attend,
)
from shardproof.verify.clients.contract.experiments.engine_run import Prompt, gap, positions_of
from shardproof.verify.clients.contract.experiments.op_log import OpLog, logged_inside
from shardproof.verify.clients.contract.experiments.own_function import spec_of
from shardproof.verify.clients.contract.experiments.trial import Trial, built_with, registered

NAME = "shardproof_step"
ATTENDS = ("softmax", "scaled_dot_product", "attention")
"""Words in the names of operations that compute an attention."""
_COUNTS = ("aten.arange", "aten.linspace")
LARGEST_KEPT = 1 << 16
"""Numbers of the largest result that is compared."""


@dataclass(frozen=True, slots=True)
class Bypass:
    """An attention module that calls the interface for a sequence, and not for one token: `source` is where it attends then."""

    path: str
    module: str
    source: Source | None


@dataclass(frozen=True, slots=True)
class OneStep:
    """What one token alone does otherwise than in its sequence.

    `size` is the largest relative difference of its queries and keys: it does not stand where its position says. Where
    `remembers`, the sequence of an earlier run changes it. `source` is the line at fault, None where it was not found.
    """

    size: float = 0.0
    bypass: Bypass | None = None
    remembers: bool = False
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    calls: Sequence[AttentionCall]
    answers: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class _SmallModel:
    """A model whose attention `recorder` answers."""

    trial: Trial
    model: nn.Module
    recorder: AttentionRecorder

    def run(self, tokens: Tensor, positions: Tensor, answers: Sequence[Tensor] = (), log: OpLog | None = None) -> _Run:
        """One call of the base model; `answers` are what each attention gives a token alone, as far as they go."""
        given: list[Tensor] = []

        def answer(call: AttentionCall) -> Tensor:
            at = len(given)
            forced = at < len(answers) and call.query.shape[2] == len(answers[at])
            given.append(answers[at] if forced else _attended(call))
            return given[-1]

        self.recorder.answer, self.recorder.calls = answer, []
        with registered(NAME, self.recorder), torch.no_grad(), log if log is not None else nullcontext():
            self.trial.base(self.model)(
                input_ids=tokens, inputs_embeds=None, use_cache=False, position_ids=positions, return_dict=False
            )
        return _Run(self.recorder.calls, given)


def one_step(trial: Trial, prompt: Prompt) -> OneStep:
    """A token of the middle of the longest sequence, alone and in its sequence. Raises whatever the model raises."""
    recorder = AttentionRecorder({}, _attended)
    small = _SmallModel(trial, built_with(trial, NAME, recorder), recorder)
    row, another = sorted(prompt.rows, key=lambda one: one.shape[1], reverse=True)[:2]
    positions = positions_of(trial, (row.shape[1],))
    at = row.shape[1] // 2
    token, place = row[:, at : at + 1], positions[..., at : at + 1]
    sequence = small.run(row, positions)
    whole = _of_tokens(sequence, [at])
    alone = small.run(token, place, whole.answers)
    called = {call.path for call in alone.calls}
    missing = next((call for call in whole.calls if call.path not in called), None)
    if missing is not None:
        module = small.model.get_submodule(missing.path)
        step = logged_inside(module, lambda: small.run(token, place, whole.answers), lambda _: False)
        return OneStep(bypass=Bypass(missing.path, type(missing.module).__name__, _attending(step)))
    small.run(another, positions_of(trial, (another.shape[1],)))
    later = small.run(token, place, whole.answers)
    if _differ(alone.calls, later.calls, trial.tolerance) > 0:
        return OneStep(remembers=True, source=_remembering(small, (row, another), token, place, whole))
    pairs = zip(alone.calls, whole.calls, strict=False)
    size = max((_gap(one, (other.query, other.key)) for one, other in pairs), default=0.0)
    if size > trial.tolerance:
        return OneStep(size, source=_misplacing(small, token, (place, place - 1), whole))
    return _in_one_row(small, sequence, row, positions)


def _in_one_row(small: _SmallModel, sequence: _Run, row: Tensor, positions: Tensor) -> OneStep:
    """Tokens of two places that are run in one row, beside what they are in their sequence."""
    places = [row.shape[1] // 2, row.shape[1] - 1]
    tokens, at, wanted = row[:, places], positions[..., places], _of_tokens(sequence, places)
    pairs = zip(small.run(tokens, at, wanted.answers).calls, wanted.calls, strict=False)
    size = max((_gap(one, (other.query, other.key)) for one, other in pairs), default=0.0)
    if size <= small.trial.tolerance:
        return OneStep(size)
    nearer = positions[..., [places[0], places[1] - 1]]
    return OneStep(size, source=_misplacing(small, tokens, (at, nearer), wanted))


def _attended(call: AttentionCall) -> Tensor:
    return as_rows(attend(call.query, call.key, call.value, spec_of(call)))


def _of_tokens(run: _Run, places: list[int]) -> _Run:
    """What a run gives tokens of its sequence: their queries, keys and values at every call, and their answers."""
    parts = [
        replace(call, **{name: getattr(call, name)[:, :, places] for name in ("query", "key", "value")})
        for call in run.calls
    ]
    return _Run(parts, [answer[places] for answer in run.answers])


def _gap(call: AttentionCall, wanted: tuple[Tensor, Tensor]) -> float:
    return max(gap(one, other) for one, other in zip((call.query, call.key), wanted, strict=True))


def _differ(first: Sequence[AttentionCall], second: Sequence[AttentionCall], tolerance: float) -> float:
    """The largest difference of any query, key or value; 0 where it is within the tolerance."""
    pairs = [
        (getattr(one, name), getattr(other, name))
        for one, other in zip(first, second, strict=False)
        for name in ("query", "key", "value")
    ]
    size = max((gap(one, other) for one, other in pairs), default=0.0)
    return size if size > tolerance else 0.0


def _remembering(
    small: _SmallModel, rows: Sequence[Tensor], token: Tensor, place: Tensor, whole: _Run
) -> Source | None:
    """The first line whose result depends on the sequence that was run before."""
    logs = []
    for row in rows:
        small.run(row, positions_of(small.trial, (row.shape[1],)))
        logs.append(OpLog(lambda one: one.is_floating_point() and one.numel() <= LARGEST_KEPT))
        small.run(token, place, whole.answers, logs[-1])
    for one, other in zip(logs[0].ops, logs[1].ops, strict=False):
        if one.name != other.name:
            return one.source
        if one.value is not None and other.value is not None and gap(one.value, other.value) > small.trial.tolerance:
            return one.source
    return None


def _misplacing(small: _SmallModel, tokens: Tensor, places: tuple[Tensor, Tensor], whole: _Run) -> Source | None:
    """The first line that is given other positions and gives the same result, else the first that counts by itself."""
    logs = [OpLog(lambda one: one.numel() <= LARGEST_KEPT and one.dtype is not torch.bool) for _ in range(2)]
    for log, at in zip(logs, places, strict=True):
        small.run(tokens, at, whole.answers, log)
    moved: set[int] = set()
    for number, (one, other) in enumerate(zip(logs[0].ops, logs[1].ops, strict=False)):
        if one.value is None or other.value is None:
            continue
        if not torch.equal(one.value, other.value):
            moved.add(number)
        elif moved & set(one.inputs) and one.source is not None:
            return one.source
    return next((op.source for op in logs[0].ops if op.name in _COUNTS and op.source is not None), None)


def _attending(log: OpLog) -> Source | None:
    """The first line of a log that computes an attention, else its first line."""
    attends = (op.source for op in log.ops if any(word in op.name for word in ATTENDS))
    return next(attends, log.ops[0].source if log.ops else None)
