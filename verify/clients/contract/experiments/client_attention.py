"""The attention that a client computes, in float64 and in the form in which the client gives it back; and what arrived at it.

Source: `vllm/model_executor/models/transformers/__init__.py` (`vllm_attention_forward`) and `base.py`
(`_create_attention_instances`), 0.25.0 and 0.32.0; `sglang/srt/models/transformers.py`
(`sglang_flash_attention_forward`, `_create_attention_instances`), 0.5.23. Both are causal inside a sequence, read no mask, and
return one row a token with the heads side by side, and no weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shardproof.planner.ir.findings import Source
from shardproof.verify.clients.contract.experiments.frames import calling_line

ARGUMENTS = ("module", "query", "key", "value", "attention_mask")


@dataclass(frozen=True)
class AttentionCall:
    """One call of the attention interface.

    `query` is `(1, heads, tokens, width)`, `key` and `value` have the heads that the call gave them. `extra` are positional
    arguments after the mask, `options` the keywords; `source` is the line of the call.
    """

    path: str
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    extra: tuple[Any, ...]
    options: Mapping[str, Any]
    source: Source | None

    @property
    def layer(self) -> object:
        """The number that the module gives itself."""
        return getattr(self.module, "layer_idx", None)

    @property
    def scale(self) -> float:
        """The factor of the scores that the call asks for; without `scaling` that of Transformers' functions."""
        given = self.options.get("scaling")
        return float(given) if isinstance(given, float | int | Tensor) else float(self.query.shape[-1]) ** -0.5

    def number(self, name: str) -> float:
        """An option that is a number; 0 where it is not given."""
        given = self.options.get(name)
        return float(given) if isinstance(given, float | int) and not isinstance(given, bool) else 0.0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What an attention computes beside the products: `window` in tokens and `softcap` are 0 where there is none."""

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: Tensor | None = None
    causal: bool = True
    allowed: Tensor | None = None
    """Which keys a query may see, `(.., queries, keys)`, where that is known; else causal, inside a sequence."""
    bias: Tensor | None = None


def attend(query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, bounds: Sequence[int] = ()) -> Tensor:
    """Attention in float64: `(1, heads, tokens, width of a value)`.

    Args:
        query: `(1, heads, tokens, width)`; key and value have as many heads, or a divisor of them.
        key: see query.
        value: see query.
        spec: scale, window, soft-cap, sinks.
        bounds: the lengths of the sequences side by side in the row; one sequence if empty.
    """
    query, key, value = query.double(), *(repeated(one, query).double() for one in (key, value))
    scores = query @ key.transpose(-1, -2) * spec.scale
    if spec.softcap:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    if spec.bias is not None:
        scores = scores + spec.bias
    seen = spec.allowed if spec.allowed is not None else visible(query.shape[2], spec, bounds)
    scores = scores.masked_fill(~seen, -torch.inf)
    if spec.sinks is not None:
        sinks = spec.sinks.double().reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1] @ value
    return scores.softmax(dim=-1).nan_to_num() @ value


def visible(tokens: int, spec: AttentionSpec, bounds: Sequence[int] = ()) -> Tensor:
    """Which keys each query sees, `(tokens, tokens)`: those before it in its sequence, inside the window."""
    at = torch.arange(tokens)
    sequence = torch.repeat_interleave(torch.arange(len(bounds)), torch.tensor(bounds)) if bounds else at * 0
    seen = sequence[:, None] == sequence[None, :]
    distance = at[:, None] - at[None, :]
    if spec.causal:
        seen = seen & (distance >= 0)
    return seen & (distance < spec.window) if spec.window else seen


def repeated(part: Tensor, query: Tensor) -> Tensor:
    """Keys or values with as many heads as the queries: each head repeated, as every client repeats them."""
    times = query.shape[1] // part.shape[1]
    return part.repeat_interleave(times, dim=1) if times > 1 and part.shape[1] * times == query.shape[1] else part


def as_rows(attended: Tensor) -> Tensor:
    """`(1, heads, tokens, width)` as engines give it back: `(tokens, heads * width)`."""
    return attended[0].transpose(0, 1).reshape(attended.shape[2], -1)


def as_interface(attended: Tensor) -> Tensor:
    """`(1, heads, tokens, width)` as Transformers' own functions give it back: `(1, tokens, heads, width)`."""
    return attended.transpose(1, 2).contiguous()


Answer = Callable[[AttentionCall], Tensor]


@dataclass
class AttentionRecorder:
    """An attention function that remembers its calls, and answers by `answer`; it gives the weights `weights`, or None."""

    paths: dict[int, str]
    answer: Answer
    weights: Callable[[AttentionCall], Tensor | None] = lambda _: None
    calls: list[AttentionCall] = field(default_factory=list)
    listen: Callable[[AttentionCall], None] = lambda _: None
    """Called inside each call, when the frames of the model are still there."""

    def __call__(self, *given: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        named = dict(zip(ARGUMENTS, given, strict=False))
        named |= {name: options.pop(name) for name in ARGUMENTS if name in options}
        module = named.get("module")
        assert isinstance(module, nn.Module), "the interface is given the module that attends"
        call = AttentionCall(
            self.paths.get(id(module), ""),
            module,
            named["query"],
            named["key"],
            named["value"],
            named.get("attention_mask"),
            given[len(ARGUMENTS) :],
            options,
            calling_line(),
        )
        self.calls.append(call)
        self.listen(call)
        weights = self.weights(call)
        kind = call.query.dtype
        return self.answer(call).to(kind), weights.to(kind) if weights is not None else None


def paths_in(model: nn.Module) -> dict[int, str]:
    """Every module's path, by the identity of the module."""
    return {id(module): path for path, module in model.named_modules()}
