"""The rule table: op name -> what the op does to dims. `rule` registers, `semantics` looks up."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TypeAlias

from shardproof.planner.propagation.semantics import Call, Semantics

Rule: TypeAlias = Callable[[Call], Semantics | None]

RULES: dict[str, Rule] = {}
ASSUMED: dict[str, str] = {}
"""What the rule of an op takes for granted."""

_FAMILIES = ("einsum", "pointwise", "reduce", "view", "index", "attention", "norm", "random")


def rule(*targets: str) -> Callable[[Rule], Rule]:
    """Register a rule for ops; a second rule for the same op raises."""

    def register(function: Rule) -> Rule:
        for target in targets:
            if target in RULES:
                raise ValueError(f"{target} has a rule already: {RULES[target].__name__}.")
            RULES[target] = function
        return function

    return register


@cache
def _load() -> None:
    for family in _FAMILIES:
        import_module(f"shardproof.planner.propagation.rules.{family}")


def semantics(call: Call) -> Semantics | None:
    """What this op does to dims; None if there is no rule."""
    target = rule_of(call.op.target)
    return RULES[target](call) if target is not None else None


def rule_of(target: str) -> str | None:
    """The name under which the rule of an op is registered, if it has one: an in-place op uses the rule of its out-of-place
    form.
    """
    _load()
    return next((name for name in (target, target.removesuffix("_")) if name in RULES), None)


def ruled() -> frozenset[str]:
    """The names of all ops with a registered rule."""
    _load()
    return frozenset(RULES)
