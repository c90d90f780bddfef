"""Scaled dot-product attention: heads and batch may be sharded; dims that the softmax mixes are locked."""

from shardproof.planner.ir.graph import Ref
from shardproof.planner.propagation.rules.registry import rule
from shardproof.planner.propagation.semantics import Call, Einsum, Letters


@rule("attention")
def attention(call: Call) -> Einsum:
    """`softmax(q[b, h, s, d] k[b, h, t, d] + mask[b, h, s, t]) v[b, h, t, e]`; with grouped queries `h` is larger in q."""
    lead = tuple(f"b{position}" for position in range(len(call.shapes[0]) - 3))
    head = ("h",) if len(call.shapes[0]) > 2 else ()
    query: Letters = (*lead, *head, "s", "d")
    key: Letters = (*lead, *head, "t", "d")
    value: Letters = (*lead, *head, "t", "e")
    inputs = [query, key, value]
    if isinstance(call.op.arg(3, "attn_mask"), Ref):
        scores = (*lead, *head, "s", "t")
        mask = call.shapes[3]
        inputs.append(
            tuple(None if size == 1 else n for size, n in zip(mask, scores[len(scores) - len(mask) :], strict=True))
        )
    locked = frozenset({"s", "t", "d"})
    why = "the softmax over all keys needs whole scores"
    return Einsum(tuple(inputs), ((*lead, *head, "s", "e"),), locked, (frozenset({2}),), why_locked=why)
