"""Faults of the forward that values may hide, so that they are left undecided instead of refuted.

The rules look at ops, not at values. A rank's value that differs from its part of the whole one is a fault only if the
difference reaches something: a branch may take the same side all the same.
"""

from collections.abc import Iterator
from dataclasses import replace

from shardproof.planner.ir.graph import BRANCH, READ, Graph
from shardproof.planner.propagation.forward.relation import Stuck


def doubted(whole: Graph, stuck: Stuck) -> Stuck:
    """The fault as it is, or undecided with the reason."""
    if stuck.position is None or stuck.op is None or stuck.op.target.startswith("tp."):
        return stuck
    reason = _hidden(whole, stuck.position)
    return stuck if reason is None else replace(stuck, code="TP210", why=f"{stuck.why}; {reason}")


def _hidden(whole: Graph, position: int) -> str | None:
    if _only_branches(whole, position):
        return "but only a branch depends on it, and the ranks may take the side of the single device"
    return None


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
