"""Random numbers: the numbers drawn for a shard are not a shard of those that one device draws."""

from shardproof.planner.propagation.rules.registry import rule
from shardproof.planner.propagation.semantics import Call, Einsum, Fresh, Letters, Semantics

_LIKE = """bernoulli rand_like randn_like randint_like normal uniform random exponential geometric log_normal cauchy poisson
    multinomial binomial""".split()


def draws(target: str) -> bool:
    """Whether an op draws random numbers."""
    name = target.removeprefix("aten.").rstrip("_")
    return target.startswith("aten.") and name in (*_LIKE, "rand", "randn", "randint", "randperm")


@rule(*(f"aten.{name}" for name in _LIKE))
def drawn_like(call: Call) -> Semantics:
    """Drawn with the shape of a tensor, which must be whole in every dim, so that all ranks draw the same numbers."""
    if not call.shapes:
        return Fresh(uniform=False)
    inputs: tuple[Letters, ...] = tuple(tuple(f"t{n}d{i}" for i in range(len(s))) for n, s in enumerate(call.shapes))
    outputs: tuple[Letters, ...] = tuple((None,) * len(result) for result in call.results)
    every = frozenset(name for letters in inputs for name in letters if name)
    return Einsum(
        inputs, outputs, every, why_locked="random numbers drawn for a part are no part of those drawn for the whole"
    )


@rule("aten.rand", "aten.randn", "aten.randint", "aten.randperm")
def drawn(call: Call) -> Semantics:
    """Drawn for a given size: the same on all ranks if the size is that of the whole tensor and the ranks have the same
    seed.
    """
    return Fresh(uniform=False)
