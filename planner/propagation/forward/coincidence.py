"""Faults of the forward that values may hide, so that they are left undecided instead of refuted.

The rules look at ops, not at values. A rank's value that differs from its part of the whole one is a fault only if the
difference reaches something: a branch may take the same side all the same.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import prod

from shardproof.planner.ir.graph import BRANCH, READ, Graph
from shardproof.planner.propagation.forward.relation import Stuck
from shardproof.planner.propagation.forward.views import per_element
from shardproof.planner.propagation.semantics import Call


def doubted(whole: Graph, stuck: Stuck) -> Stuck:
    """The fault as it is, or undecided with the reason."""
    if stuck.position is None or stuck.op is None or stuck.op.target.startswith("tp."):
        return stuck
    reason = _hidden(whole, stuck.position)
    return stuck if reason is None else replace(stuck, code="TP210", why=f"{stuck.why}; {reason}")


def _hidden(whole: Graph, position: int) -> str | None:
    if _only_branches(whole, position):
        return "but only a branch depends on it, and the ranks may take the side of the single device"
    if _only_compared(whole, position):
        return "but only comparisons of single numbers depend on it, which may come out alike on all ranks"
    if _only_regrouped(whole, position):
        return "but every element is treated alike until the sizes are as before, so the grouping may not matter"
    return None


_TRUTHS = frozenset(f"aten.{name}" for name in ("any", "all", "gt", "ge", "lt", "le", "eq", "ne", "isnan", "isinf"))
"""Ops that make truth values of numbers."""


def _only_compared(whole: Graph, position: int) -> bool:
    """Whether an op says of numbers whether some or all are true, or makes one number that is only compared with others."""
    op = whole.ops[position]
    if op.target in ("aten.any", "aten.all"):
        return True
    if len(op.outputs) != 1 or prod(whole.values[op.outputs[0]].shape) != 1:
        return False
    users = [whole.ops[later] for later in whole.users.get(op.outputs[0], ())]
    return bool(users) and all(user.target in _TRUTHS for user in users)


def _only_regrouped(whole: Graph, position: int) -> bool:
    """Whether a view of fixed sizes is undone by another, and each op between them treats every element alike."""
    op = whole.ops[position]
    if op.target != "aten.view":
        return False
    before, left = whole.values[op.inputs[0]].shape, list(op.outputs)
    while left:
        number = left.pop()
        if any(number == output for _, output in whole.outputs):
            return False
        for later in whole.users.get(number, ()):
            user = Call(whole, whole.ops[later])
            if user.op.target == "aten.view" and user.results[0] == before:
                continue
            if not (per_element(user) or user.op.target in _PERMUTED):
                return False
            left += user.op.outputs
    return True


_PERMUTED = frozenset(("aten.permute", "aten.transpose", "aten.t"))


def _only_branches(whole: Graph, position: int) -> bool:
    """Whether no value depends on an op's result except which side a branch on data takes."""
    results = set(whole.ops[position].outputs)
    outputs = {number for _, number in whole.outputs}
    branches = 0
    for later in _after(whole, position):
        op = whole.ops[later]
        if op.target == READ:
            if BRANCH not in op.args:
                return False
            branches += 1
        results.update(op.outputs)
    return branches > 0 and results.isdisjoint(outputs)


def _after(whole: Graph, position: int) -> Iterator[int]:
    """The positions of all ops that depend on an op's results."""
    seen: set[int] = set()
    left = [position]
    while left:
        for number in whole.ops[left.pop()].outputs:
            for later in whole.users.get(number, ()):
                if later not in seen:
                    seen.add(later)
                    left.append(later)
                    yield later
