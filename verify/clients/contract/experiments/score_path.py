"""Why a model's own attention function is not the attention of a client: where its scores, weights or result leave the reference.

The reference is `softmax(scale * query @ key + mask) @ value`. Each result of the function that has one number for each query
and key is compared with it, in order: up to some operation the results are the scores, after it something else.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from shardproof.planner.ir.findings import Source
from shardproof.verify.clients.contract.experiments.op_log import LoggedOp

CLOSE = 1e-4
"""Relative difference up to which results are the same; those of one float32 step differ by about 1e-7."""
_HIDDEN = -1e3
"""A score below this gives its key no weight."""
_SEEN, _UNSEEN = 1e-9, 1e-12
"""A weight above the first gives a key a part of the result; one below the second gives it none."""
_WITH_BIAS = ("baddbmm", "addmm")
"""Products that add something in one operation."""
_BOUNDS = ("aten.clamp", "aten.clamp_min", "aten.clamp_max", "aten.hardtanh", "aten.minimum", "aten.maximum")


class Departure(StrEnum):
    """In what an attention function differs from the reference."""

    SCALE = "the scale"
    SOFTCAP = "a soft-cap on the scores"
    BOUNDS = "bounds on the scores"
    BIAS = "a bias on the scores"
    INPUTS = "other queries or keys than it was given"
    MASK = "which keys a query sees"
    NORMALISATION = "another normalisation than softmax"
    SINKS = "weights that do not add up to 1"
    AFTER = "something after the softmax"
    UNKNOWN = "something that was not told apart"


@dataclass(frozen=True, slots=True)
class ScoreExplanation:
    """`source` is the line where the function leaves the reference; `scale` the factor that it really applies."""

    departure: Departure
    source: Source | None
    scale: float = 0.0


@dataclass(frozen=True, slots=True)
class _Step:
    """A result with one number for each head, query and key."""

    op: LoggedOp
    value: Tensor


def explain(
    ops: Sequence[LoggedOp], products: Tensor, allowed: Tensor, value: Tensor, scale: float
) -> ScoreExplanation:
    """The first departure of a function from the reference.

    Args:
        ops: the operations of the function, with the results that have as many numbers as `products`, or as the output.
        products: query times key without a scale, `(1, heads, queries, keys)`.
        allowed: the keys that each query may see, `(queries, keys)`.
        value: the values, with as many heads as the queries, `(1, heads, keys, width)`.
        scale: the factor of the reference.
    """
    steps = [
        _Step(op, op.value.double().reshape(products.shape))
        for op in ops
        if op.value is not None and op.value.numel() == products.numel() and op.value.is_floating_point()
    ]
    clean = [(at, factor) for at, step in enumerate(steps) if (factor := _factor(step.value, products, allowed))]
    if not clean and not steps:
        return ScoreExplanation(Departure.UNKNOWN, None)
    if not clean and any(word in step.op.name for step in steps for word in _WITH_BIAS):
        return _before(steps, -1, scale, products, allowed)
    if not clean:
        product = next((step for step in steps if step.op.name in _PRODUCTS), steps[0])
        return ScoreExplanation(Departure.INPUTS, product.op.source)
    asked = [factor for _, factor in clean if abs(factor - scale) <= CLOSE * scale]
    for factor in (*asked[:1], clean[-1][1]):
        weights = _expected(products, allowed, factor)
        right = [at for at, step in enumerate(steps) if at > clean[0][0] and _near(step.value, weights)]
        if not right:
            continue
        if abs(factor - scale) > CLOSE * scale:
            first = next(at for at, other in clean if abs(other - factor) <= CLOSE * abs(factor))
            return ScoreExplanation(Departure.SCALE, steps[first].op.source, factor)
        return ScoreExplanation(Departure.AFTER, _after(ops, steps, right, weights @ value, value))
    last, factor = clean[-1]
    return _before(steps, last, factor, products, allowed)


def _factor(found: Tensor, products: Tensor, allowed: Tensor) -> float:
    """The factor by which these are the scores of every key that may be seen; 0 where they are not."""
    seen = allowed.expand(products.shape)
    ours, theirs = products[seen], found[seen]
    if not torch.isfinite(theirs).all():
        return 0.0
    factor = float((ours * theirs).sum() / (ours * ours).sum().clamp_min(1e-30))
    size = float(theirs.abs().max()) or 1.0
    return factor if float((theirs - factor * ours).abs().max()) <= CLOSE * size and abs(factor) > 1e-9 else 0.0


def _expected(products: Tensor, allowed: Tensor, factor: float) -> Tensor:
    return (products * factor).masked_fill(~allowed, -torch.inf).softmax(dim=-1).nan_to_num()


def _near(found: Tensor, wanted: Tensor) -> bool:
    return bool(torch.isfinite(found).all()) and float((found - wanted).abs().max()) <= CLOSE


def _after(
    ops: Sequence[LoggedOp], steps: Sequence[_Step], right: Sequence[int], output: Tensor, value: Tensor
) -> Source | None:
    """The first line after the weights that gives neither the weights nor their product with the values, or the line that
    changed the values.
    """
    weights = next(at for at, op in enumerate(ops) if op is steps[right[0]].op)
    reached = {at for at, op in enumerate(ops) if any(op is steps[one].op for one in right)} | {weights}
    forms = [output, output.transpose(1, 2)]
    for at, op in enumerate(ops):
        if at <= weights or not set(op.inputs) & reached:
            continue
        reached.add(at)
        if op.value is None or any(op is steps[one].op for one in right):
            continue
        same = any(
            op.value.numel() == form.numel() and _near(op.value.double().flatten(), form.flatten()) for form in forms
        )
        if not same and op.name not in _MOVES and not _is_copy(op, ops):
            return (_changing_values(ops, op, value, reached) if op.name in _PRODUCTS else None) or op.source
    return None


_PRODUCTS = ("aten.bmm", "aten.mm", "aten.matmul")


def _changing_values(
    ops: Sequence[LoggedOp], product: LoggedOp, value: Tensor, weighted: Collection[int]
) -> Source | None:
    """The line that made other values of the ones that were given, where `product` multiplies those with the weights
    (`weighted`).
    """
    wanted, seen = [one for one in product.inputs if one not in weighted], set[int]()
    changing: LoggedOp | None = None
    while wanted:
        at = max(wanted)
        wanted.remove(at)
        made = ops[at].value
        if at in seen or made is None or made.numel() != value.numel():
            continue
        seen.add(at)
        if _near(made.double().flatten(), value.flatten()):
            break
        changing = ops[at] if ops[at].name not in _MOVES else changing
        wanted += ops[at].inputs
    return changing.source if changing is not None else None


_MOVES = tuple(
    f"aten.{name}"
    for name in "view _unsafe_view reshape expand transpose permute clone contiguous _to_copy detach alias unsqueeze "
    "squeeze slice select t".split()
)


def _is_copy(op: LoggedOp, ops: Sequence[LoggedOp]) -> bool:
    """Whether an operation gives one of its inputs back, such as dropout in evaluation."""
    given = [value for one in op.inputs if (value := ops[one].value) is not None]
    made = op.value
    return made is not None and any(
        value.numel() == made.numel() and torch.equal(value.flatten(), made.flatten()) for value in given
    )


def _before(steps: Sequence[_Step], last: int, factor: float, products: Tensor, allowed: Tensor) -> ScoreExplanation:
    """The departure between the scores and the weights."""
    rest = steps[last + 1 :]
    first = next((step for step in rest if not _moved(step)), None)
    source = first.op.source if first is not None else steps[last].op.source
    at = next((at for at, step in enumerate(rest) if _adds_up(step.value)), None)
    names = {step.op.name for step in rest}
    if at is None:
        shares = next((step for step in rest if _shares(step.value, products, allowed, factor)), None)
        if shares is not None:
            return ScoreExplanation(Departure.SINKS, shares.op.source)
        return ScoreExplanation(Departure.NORMALISATION, source)
    weights = rest[at].value
    if _masks(weights, products, allowed, factor):
        return ScoreExplanation(Departure.MASK, source)
    for departure, operations in ((Departure.SOFTCAP, ("aten.tanh",)), (Departure.BOUNDS, _BOUNDS)):
        capping = next((step for step in rest[:at] if step.op.name in operations and _moves_seen(step, steps)), None)
        if capping is not None:
            return ScoreExplanation(departure, capping.op.source)
    if not names & {"aten._softmax", "aten.exp", "aten.softmax", "aten._safe_softmax"}:
        return ScoreExplanation(Departure.NORMALISATION, source)
    other = _refit(weights, products, allowed)
    if other:
        return ScoreExplanation(Departure.SCALE, source, other)
    powers = {"aten.relu", "aten.sigmoid", "aten.pow", "aten.square"} & names
    return ScoreExplanation(Departure.NORMALISATION if powers else Departure.BIAS, source)


def _moves_seen(step: _Step, steps: Sequence[_Step]) -> bool:
    """Whether an operation gives other scores than the step before it, beside those that hide a key."""
    at = next(at for at, one in enumerate(steps) if one is step)
    before = steps[at - 1].value if at else step.value
    seen = before > _HIDDEN
    return not torch.equal(before[seen], step.value[seen])


def _masks(weights: Tensor, products: Tensor, allowed: Tensor, factor: float) -> bool:
    """Whether keys are hidden that the scores show, or shown that may not be seen."""
    expected = _expected(products, allowed, factor)
    hidden = (expected > _SEEN) & (weights == 0)
    shown = ~allowed.expand(weights.shape) & (weights > _UNSEEN)
    return bool((hidden | shown).any())


def _moved(step: _Step) -> bool:
    return step.op.name in _MOVES


def _adds_up(found: Tensor) -> bool:
    return bool((found >= 0).all()) and bool((found.sum(dim=-1) - 1).abs().max() <= 1e-4)


def _shares(found: Tensor, products: Tensor, allowed: Tensor, factor: float) -> bool:
    """Whether these are softmax weights of the scores with a part of each row given to no key."""
    if not bool((found >= 0).all()) or not bool((found.sum(dim=-1) <= 1 + 1e-6).all()):
        return False
    rows = found / found.sum(dim=-1, keepdim=True).clamp_min(1e-30)
    return _near(rows, _expected(products, allowed, factor))


def _refit(weights: Tensor, products: Tensor, allowed: Tensor) -> float:
    """The scale under which the weights are a softmax of the products; 0 where there is none."""
    seen = allowed.expand(products.shape)
    logs = torch.where(seen, weights.clamp_min(1e-300).log(), 0.0)
    ours = torch.where(seen, products, 0.0)
    count = seen.sum(dim=-1, keepdim=True)
    logs, ours = (torch.where(seen, one - one.sum(-1, keepdim=True) / count, 0.0) for one in (logs, ours))
    factor = float((logs * ours).sum() / (ours * ours).sum().clamp_min(1e-30))
    return factor if float((logs - factor * ours).abs().max()) <= 1e-4 and abs(factor) > 1e-9 else 0.0
