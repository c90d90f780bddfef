"""Which keys a query sees in the model's own run, and who says so: a masking function of Transformers, or the model by hand.

The model is run as Transformers runs it, on one sequence, with an attention function that remembers the mask that it is given,
and with a maker of masks that remembers what it made. An engine gives no mask: what a mask says beyond "the keys before, in the
window of the config" is lost.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import sdpa_mask

from shardproof.planner.inputs.example import caching
from shardproof.planner.ir.findings import Source
from shardproof.verify.clients.contract.experiments.client_attention import (
    AttentionCall,
    AttentionRecorder,
    AttentionSpec,
    as_interface,
    attend,
    visible,
)
from shardproof.verify.clients.contract.experiments.engine_run import Prompt
from shardproof.verify.clients.contract.experiments.frames import calling_line, frames
from shardproof.verify.clients.contract.experiments.op_log import OpLog
from shardproof.verify.clients.contract.experiments.own_function import spec_of, split_mask
from shardproof.verify.clients.contract.experiments.score_path import _MOVES
from shardproof.verify.clients.contract.experiments.trial import Trial, built_with, made_mask, registered

NAME = "shardproof_masked"
Maker = Callable[..., Tensor | None]
_MAKERS = (
    "create_causal_mask",
    "create_sliding_window_causal_mask",
    "create_chunked_causal_mask",
    "create_bidirectional_mask",
)

_WINDOWS = {"create_causal_mask": "", "create_sliding_window_causal_mask": "sliding_window"}
"""The field of the config that says the window of a masking function; empty for a function without one. Of other functions the
window is not known.
"""


@dataclass(frozen=True, slots=True)
class MadeMask:
    """A mask that Transformers made: the line that asked for it, the function that was asked, and the window of its config.

    The window is 0 for a function without one, and None where it is not known. A window longer than the row that is run does not
    show in the values.
    """

    value: Tensor | None
    source: Source | None
    function: str
    window: int | None


@dataclass(frozen=True, slots=True)
class MaskSeen:
    """The mask of one call of the attention.

    `allowed` is `(heads, queries, keys)`, `bias` what is added to the scores besides, `made` the mask of Transformers that it is,
    unaltered; `source` is the line that made or altered it, else the line of the attention's call.
    """

    call: AttentionCall
    allowed: Tensor
    bias: Tensor | None
    made: MadeMask | None
    source: Source | None
    by_hand: bool
    """Whether no masking function of Transformers took part in it."""
    windows: frozenset[int | None] = frozenset()
    """The windows of all masks of Transformers that have its values, None for one that is not known; empty where no mask has."""

    def says(self, window: int) -> bool:
        """Whether a query sees the keys before it, inside a window of so many tokens (0 for no window), and nothing else."""
        wanted = visible(self.allowed.shape[-2], AttentionSpec(1.0, window))
        return self.allowed.shape[-1] == wanted.shape[-1] and bool((self.allowed == wanted).all())

    @property
    def windowed(self) -> int:
        """The window in tokens that the mask applies: 0 for none, -1 where it is something else than a causal window."""
        tokens = self.allowed.shape[-2]
        return next((width if width < tokens else 0 for width in range(1, tokens + 1) if self.says(width)), -1)


def masks_seen(trial: Trial, prompt: Prompt) -> list[MaskSeen]:
    """The masks of every call of the attention, in the model's own run: with the masks of eager attention, and with those of
    torch's, which are none where causality is enough. Raises whatever the model raises.
    """
    return [*_masks_with(trial, prompt, made_mask), *_masks_with(trial, prompt, sdpa_mask)]


def _masks_with(trial: Trial, prompt: Prompt, make: Maker) -> list[MaskSeen]:
    made: list[MadeMask] = []

    def maker(*args: Any, **kwargs: Any) -> Tensor | None:
        value = make(*args, **kwargs)
        asked = next((frame for frame in frames() if frame.f_code.co_name in _MAKERS), None)
        function = asked.f_code.co_name if asked is not None else ""
        kept = value.clone() if value is not None else None  # the model may write into what it is given
        made.append(MadeMask(kept, calling_line(), function, _window(asked)))
        return value

    calls = _run(trial, prompt, maker)
    altered = [call for call in calls if isinstance(call.mask, Tensor) and _unaltered(call, made) is None]
    sources = _origins(trial, prompt, maker) if altered else {}
    return [_seen(call, at, made, sources) for at, call in enumerate(calls)]


def _window(asked: FrameType | None) -> int | None:
    """The window of a masking function that is running, from the config that it was given; 0 for a function without one."""
    if asked is None or asked.f_code.co_name not in _WINDOWS:
        return None
    field = _WINDOWS[asked.f_code.co_name]
    window = getattr(asked.f_locals.get("config"), field, None) if field else 0
    return window if type(window) is int else None


def _run(trial: Trial, prompt: Prompt, maker: Maker, log: OpLog | None = None) -> list[AttentionCall]:
    recorder = AttentionRecorder({}, _answer)
    model = built_with(trial, NAME, recorder, masks=maker)
    base = trial.base(model)
    row = max(prompt.rows, key=lambda one: one.shape[1])
    with registered(NAME, recorder, masks=maker), torch.no_grad():
        if log is None:
            base(input_ids=row, **caching(base, False))
        else:
            with log:
                base(input_ids=row, **caching(base, False))
    return recorder.calls


def _answer(call: AttentionCall) -> Tensor:
    return as_interface(attend(call.query, call.key, call.value, spec_of(call)))


def _unaltered(call: AttentionCall, made: list[MadeMask]) -> MadeMask | None:
    """The first mask of Transformers with the same values."""
    return next(iter(_all_unaltered(call, made)), None)


def _all_unaltered(call: AttentionCall, made: list[MadeMask]) -> Iterator[MadeMask]:
    for one in made:
        if one.value is not None and isinstance(call.mask, Tensor) and one.value.numel() == call.mask.numel():
            ours, theirs = split_mask(call.mask), split_mask(one.value)
            if torch.equal(ours[0].flatten(), theirs[0].flatten()) and ours[1] is None and theirs[1] is None:
                yield one


@dataclass(frozen=True, slots=True)
class _Origin:
    source: Source | None
    by_hand: bool


def _origins(trial: Trial, prompt: Prompt, maker: Maker) -> dict[int, _Origin]:
    """For each call of the attention, the last line of the model that changed the values of its mask."""
    log = OpLog(lambda _: False)
    found: dict[int, _Origin] = {}
    ours: set[int] = set()

    def watched(*args: Any, **kwargs: Any) -> Tensor | None:
        value = maker(*args, **kwargs)
        ours.update(range(len(log.ops)))
        return value

    calls = _run(trial, prompt, watched, log)
    for at, call in enumerate(calls):
        if not isinstance(call.mask, Tensor):
            continue
        chain = list(log.behind(call.mask))
        first = next((op for op in chain if op.name not in _MOVES), None)
        numbers = {number for number, op in enumerate(log.ops) if op in chain}
        found[at] = _Origin(first.source if first is not None else None, not numbers & ours)
    return found


def _seen(call: AttentionCall, at: int, made: list[MadeMask], sources: dict[int, _Origin]) -> MaskSeen:
    if not isinstance(call.mask, Tensor):
        tokens = call.query.shape[2]
        causal = getattr(call.module, "is_causal", True) is not False
        seen = visible(tokens, AttentionSpec(1.0, causal=causal))
        return MaskSeen(call, seen, None, None, call.source, by_hand=False)
    allowed, bias = split_mask(call.mask)
    unaltered = _unaltered(call, made)
    origin = sources.get(at, _Origin(None, False))
    source = unaltered.source if unaltered is not None else origin.source or call.source
    by_hand = unaltered is None and (origin.by_hand or not made)
    windows = frozenset(one.window for one in _all_unaltered(call, made))
    return MaskSeen(call, allowed.reshape(-1, *allowed.shape[-2:]), bias, unaltered, source, by_hand, windows)
