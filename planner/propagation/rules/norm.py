"""Normalisations: the dims over which they take statistics are locked."""

from shardproof.planner.propagation.rules.registry import rule
from shardproof.planner.propagation.semantics import Call, Einsum, Letters

_WHY = "a norm over a sharded dim sees only this rank's part"


@rule("layer_norm", "rms_norm", "aten.native_layer_norm")
def layer_norm(call: Call) -> Einsum:
    """Statistics over the last dims; weight and bias have these dims."""
    shape = call.shapes[0]
    width = len(call.numbers(1, "normalized_shape")) or 1
    names: Letters = tuple(f"d{position}" for position in range(len(shape)))
    normed = names[len(names) - width :]
    extra = tuple(normed for _ in call.shapes[1:])
    rest = tuple((*names[: len(result) - width], *((None,) * width)) for result in call.results[1:])
    return Einsum((names, *extra), (names, *rest), frozenset(name or "" for name in normed), why_locked=_WHY)


@rule("group_norm", "aten.native_group_norm")
def group_norm(call: Call) -> Einsum:
    """Statistics over groups of channels and all spatial dims."""
    names: Letters = tuple(f"d{position}" for position in range(len(call.shapes[0])))
    extra = tuple((names[1],) for _ in call.shapes[1:])
    rest: tuple[Letters, ...] = tuple((None,) * len(result) for result in call.results[1:])
    return Einsum((names, *extra), (names, *rest), frozenset(name or "" for name in names[1:]), why_locked=_WHY)
