"""Flex attention as torch defines it, in plain operators.

The fused kernel does not run on meta, and on a CPU neither in float64 nor backward. Source: transformers 5.23.0,
`integrations/flex_attention.py` (`flex_attention_forward`, whose `score_mod` closes over a soft-cap, a mask and a position bias)
and `masking_utils.py` (the block mask and the eager mask are made of one mask function).
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.integrations import flex_attention as client
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

FLEX = "flex_attention"
BY_DEFINITION = "flex attention computes what torch defines it to, with the mask that eager attention has"
_KERNEL, _READS = "compile_friendly_flex_attention", {"softcap", "score_mask", "position_bias"}
_lock = RLock()
_within = [0]
_before: list[Any] = []


@contextmanager
def flex_by_definition() -> Iterator[None]:
    """Transformers' flex attention computes by its definition for this time, in every thread."""
    with _lock:
        if not _within[0]:
            _before.append(getattr(client, _KERNEL))
            setattr(client, _KERNEL, attended)
            ALL_MASK_ATTENTION_FUNCTIONS[FLEX] = eager_mask
        _within[0] += 1
    try:
        yield
    finally:
        with _lock:
            _within[0] -= 1
            if not _within[0]:
                setattr(client, _KERNEL, _before.pop())
                del ALL_MASK_ATTENTION_FUNCTIONS[FLEX]


def attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    training: bool = False,  # noqa: ARG001  # the kernel's own arguments
    *,
    score_mod: Callable[..., Tensor],
    block_mask: object = None,
    enable_gqa: bool = False,
    scale: float | None = None,
    kernel_options: object = None,  # noqa: ARG001
    return_aux: object = None,
    return_lse: bool = False,
) -> Any:
    """`softmax(score_mod(scale * q k^T)) v`, and the log of the sum under the softmax where it is wanted.

    Args:
        query: `[batch, heads, queries, dim]`.
        key: `[batch, heads or key-value heads, keys, dim]`; so is `value`.

    Raises:
        NotImplementedError: the scores are changed by something else than a soft-cap, a mask and a position bias.
    """
    held = inspect.getclosurevars(score_mod).nonlocals
    if block_mask is not None or held.keys() - _READS:
        told = "a block mask of the model's own" if block_mask is not None else ", ".join(held.keys() - _READS)
        raise NotImplementedError(f"flex attention with {told} is not recorded")
    if enable_gqa:
        key, value = (client.repeat_kv(one, query.shape[1] // key.shape[1]) for one in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if (cap := held.get("softcap")) is not None:
        scores = torch.tanh(scores / cap) * cap
    if (mask := held.get("score_mask")) is not None:
        scores = scores + mask[:, :1]
    if (bias := held.get("position_bias")) is not None:
        scores = scores + bias
    mixed = torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype), value)
    if return_aux is None and not return_lse:
        return mixed
    summed = torch.logsumexp(scores, -1)
    return mixed, summed if return_lse else SimpleNamespace(lse=summed)
