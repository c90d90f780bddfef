"""What a plan saves: of the parameters, the work, the cache and the activations, the share that the ranks split."""

from collections import Counter
from dataclasses import dataclass
from math import prod

from torch import nn

from shardproof.planner.inputs.run_modes import RunMode
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.placement import R, local_shape
from shardproof.planner.ir.plan import Plan, join
from shardproof.planner.layouts.multiply_adds import multiply_adds, written
from shardproof.planner.propagation.assign import Assigned, assign
from shardproof.planner.propagation.collectives import collectives
from shardproof.planner.tracing.decode_cache import cache_tensors
from shardproof.planner.tracing.programs import local_program, subject_in, subject_of
from shardproof.planner.tracing.recorded_run import TraceError

_CONTEXT = 4096
"""Tokens of the text whose cache and attention are counted."""
_WIDTH = 2
"""Bytes of an element of a collective: bfloat16."""
_MOST = 0.5
"""Told first: most of the parameters are split, and less than this of the work or of the cache."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of what is split over `degree` ranks, each 0 (every rank has all of it) to 1 (every rank has its part alone).

    Attributes:
        degree: ranks.
        parameters: of the elements of the parameters.
        compute: of the multiply-adds of a forward over a text of 4,096 tokens, on the busiest rank.
        decode: of the multiply-adds of a short prefill and one further token; None where there is no cache, or it is not known.
        cache: of the elements that a sequence keeps between steps; None where there is no cache, or it is not known.
        activations: of the elements that the ops of a forward write.
        collectives: calls in a forward, by kind.
        bytes_per_token: what a rank contributes to them for one token, in bfloat16.
    """

    degree: int
    parameters: float
    compute: float
    decode: float | None
    cache: float | None
    activations: float
    collectives: tuple[tuple[str, int], ...] = ()
    bytes_per_token: int = 0

    def to_json(self) -> dict[str, object]:
        """The key `shares` of the JSON output; what is not known is null."""
        named = {name: getattr(self, name) for name in ("parameters", "compute", "decode", "cache", "activations")}
        return {
            "degree": self.degree,
            **{name: None if value is None else round(value, 6) for name, value in named.items()},
            "collectives": dict(self.collectives),
            "bytes_per_token": self.bytes_per_token,
        }

    @property
    def warning(self) -> str:
        """What every rank does or holds whole although most of the parameters are split; empty where there is nothing to warn
        of.
        """
        if self.parameters < _MOST:
            return ""
        said = [f"computes {_rest(self.compute)} of the multiply-adds"] if self.compute < _MOST else []
        if self.cache is not None and self.cache < _MOST:
            said.append(f"holds {_rest(self.cache)} of the cache")
        return f"Every rank {' and '.join(said)}: more ranks save less than the bytes say." if said else ""

    @property
    def sentence(self) -> str:
        """One line: what is split, and the collectives."""
        known = {
            "parameters": self.parameters,
            "compute": self.compute,
            "cache": self.cache,
            "activations": self.activations,
        }
        parts = ", ".join(f"{name} {_percent(value)}" for name, value in known.items() if value is not None)
        calls = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in self.collectives)
        sent = f"; {calls} a forward, {self.bytes_per_token / 1024:.1f} KiB a token" if calls else ""
        return f"{parts}{sent}"


def shares(model: nn.Module, plan: Plan, degree: int) -> Shares:
    """The shares of a tensor plan on a meta-device model.

    Raises:
        IndivisibleError: a parameter does not divide over so many ranks.
        TraceError: the forward, or one rank's, cannot be traced.
    """
    subject = subject_of(model)
    graph = subject.graph
    assigned = assign(graph, plan.styles(subject.prefix), base_prefix=subject.prefix)
    local = local_program(model, assigned, degree)
    called = collectives(local)
    forward = [one for one in called if not one.backward]
    rows, length = _text(graph)
    text = {"length": length, "context": _CONTEXT}
    return Shares(
        degree,
        _parameters(graph, assigned, degree),
        share_split(multiply_adds(local, **text), multiply_adds(graph, **text), degree),
        _decoded(model, assigned, degree),
        _cached(model, assigned, degree),
        share_split(written(local), written(graph), degree),
        tuple(sorted(Counter(str(one.kind) for one in forward).items())),
        sum(one.elements for one in forward) * _WIDTH // (rows * length),
    )


def share_split(part: float, whole: float, degree: int) -> float:
    """The share of `whole` that is split, if one of `degree` ranks has `part` of it; 0 where a rank has more than one device."""
    if not whole or degree < 2:
        return 0.0
    return min(1.0, max(0.0, (1 - part / whole) / (1 - 1 / degree)))


def _parameters(graph: Graph, assigned: Assigned, degree: int) -> float:
    whole, part, seen = 0, 0, set()
    for module in graph.modules:
        for name, number in module.parameters:
            shape = graph.values[number].shape
            placement = assigned.parameters.get(join(module.path, name), (R,))[0]
            if number not in seen:
                seen.add(number)
                whole += prod(shape)
                part += prod(local_shape(shape, placement, degree))
    return share_split(part, whole, degree)


def _decoded(model: nn.Module, assigned: Assigned, degree: int) -> float | None:
    try:
        subject = subject_in(model, RunMode.DECODING)
        if subject is None or subject.script is None:
            return None
        local = local_program(model, assigned, degree, script=subject.script)
    except TraceError:
        return None
    return share_split(multiply_adds(local), multiply_adds(subject.graph), degree)


def _cached(model: nn.Module, assigned: Assigned, degree: int) -> float | None:
    whole = cache_tensors(model, Assigned({}, {}), 1, context=_CONTEXT)
    part = cache_tensors(model, assigned, degree, context=_CONTEXT)
    if whole is None or part is None:
        return None
    count = sum(elements for layer in whole for elements, _ in layer)
    return share_split(sum(elements for layer in part for elements, _ in layer), count, degree) if count else None


def _text(graph: Graph) -> tuple[int, int]:
    """Rows and tokens of the last input with token ids, else of the first input."""
    given = [graph.values[number].shape for name, number in graph.inputs if name.endswith("input_ids")]
    shape = (given or [graph.values[graph.inputs[0][1]].shape])[-1]
    return shape[0], shape[1] if len(shape) > 1 else 1


def _percent(value: float) -> str:
    return f"{int(value * 1000) / 10:g} %"


def _rest(split: float) -> str:
    return "all" if split < 0.005 else f"{round(100 * (1 - split))} %"
