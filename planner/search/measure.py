"""The facts of a model that a search needs, from its trace, one rank's program and the cache it fills."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import prod

from torch import nn

from planner.frontend.cache import cache_tensors
from planner.frontend.traced import local_program, subject_of
from planner.ir.degrees import Degrees
from planner.ir.graph import Graph
from planner.ir.placement import R
from planner.ir.plan import Plan, generic, join
from planner.ir.styles import STYLES
from planner.search.cost import Facts, Kept, Parameter, Per, Traffic
from planner.search.experts import dispatches, with_experts, without_experts
from planner.sharding.assign import Assigned, assign
from planner.sharding.collectives import Kind, collectives


def measure(
    model: nn.Module, plan: Plan, degrees: Degrees, *, context: int, experts: bool = False, known: Facts | None = None
) -> Facts:
    """The facts of a meta-device model under a plan; the rank's program is taken at the least legal degree above 1.

    With `experts` its experts lie whole on the ranks, by the expert plan, and the traffic is that of serving; `known` are the
    facts without them, whose cache is the same, because experts keep nothing between steps.
    """
    subject = subject_of(model)
    graph, prefix = subject.graph, subject.prefix
    given = without_experts(plan) if experts else plan
    assigned = assign(graph, given.styles(prefix), base_prefix=prefix)
    lying = with_experts(graph, plan, prefix) if experts else assigned
    units = _Units(graph, plan, prefix)
    degree = next((one for one in degrees.legal if one > 1), 1)
    traffic = _traffic(local_program(model, assigned, degree), units, degree, graph) if degree > 1 else ()
    summed = _summed(graph, plan, prefix, units) if experts else ()
    return Facts(
        parameters=_parameters(graph, lying, units),
        traffic=(*traffic, *_gradients(graph, given.styles(prefix), units), *summed),
        depth=units.depth,
        hidden=_hidden(graph, units),
        cache=known.cache if known else _cache(model, assigned, degree, context),
    )


def _cache(model: nn.Module, assigned: Assigned, degree: int, context: int) -> tuple[tuple[Kept, ...], ...] | None:
    """What each layer keeps for one sequence, and which of it ranks share: a tensor that is smaller on one of them."""
    whole = cache_tensors(model, Assigned({}, {}), 1, context=context)
    part = cache_tensors(model, assigned, degree, context=context) if degree > 1 else whole
    if whole is None or part is None or [len(one) for one in whole] != [len(one) for one in part]:
        return None
    return tuple(
        tuple(Kept(count, width, mine < count) for (count, width), (mine, _) in zip(*layer, strict=True))
        for layer in zip(whole, part, strict=True)
    )


class _Units:
    """Which unit a module belongs to: by the pipeline plan's order, the layers one by one."""

    def __init__(self, graph: Graph, plan: Plan, prefix: str) -> None:
        self.listed = [join(prefix, entry.module) for entry in plan.pp] + [entry.module for entry in plan.head_pp]
        stacks = [path for path in self.listed if "ModuleList" in graph.module_of[path].bases]
        self.stack = stacks[0] if stacks else None
        names = [path.rpartition(".") for path in graph.module_of]
        self.depth = sum(1 for parent, _, name in names if parent == self.stack and name.isdigit()) if stacks else 0

    def of(self, path: str) -> int:
        """Layers by their number; what the plan lists after them, or what is not in the base model, is after."""
        if self.stack is not None and path.startswith(f"{self.stack}."):
            return int(path.removeprefix(f"{self.stack}.").partition(".")[0]) + 1
        place = next((at for at, name in enumerate(self.listed) if path == name or path.startswith(f"{name}.")), 0)
        behind = self.stack is not None and place > self.listed.index(self.stack)
        return self.depth + 1 if behind else 0


def _parameters(graph: Graph, assigned: Assigned, units: _Units) -> tuple[Parameter, ...]:
    """Tied names are one parameter that several units use."""
    users: dict[int, set[int]] = {}
    names: dict[int, list[str]] = {}
    for module in graph.modules:
        for local, number in module.parameters:
            users.setdefault(number, set()).add(units.of(module.path))
            names.setdefault(number, []).append(join(module.path, local))
    looked_up: dict[int, set[int]] = {}
    for op in graph.ops:
        if "embedding" in op.target:
            looked_up.setdefault(op.inputs[0], set()).add(units.of(op.module))
    return tuple(
        Parameter(
            shape := graph.values[number].shape,
            next((assigned.parameters[name][0] for name in names[number] if name in assigned.parameters), R),
            frozenset(used),
            _active(graph, shape),
            frozenset(looked_up.get(number, ())),
        )
        for number, used in users.items()
    )


def _active(graph: Graph, shape: tuple[int, ...]) -> float:
    """Of stacked experts, the share that the layer's own choice of the best (`topk` over as many) sends a token to."""
    if len(shape) < 3:
        return 1.0
    shares = [
        graph.values[op.outputs[0]].shape[-1] / shape[0]
        for op in graph.ops
        if "topk" in op.target and op.inputs and graph.values[op.inputs[0]].shape[-1:] == (shape[0],)
    ]
    return min(shares, default=1.0)


def _traffic(local: Graph, units: _Units, degree: int, graph: Graph) -> tuple[Traffic, ...]:
    """Per token of the trace, of the decoder's where the collective is on its side; a gather's elements are those of the
    gathered tensor.
    """
    given = [graph.values[number].shape for name, number in graph.inputs if name.endswith("input_ids")]
    texts = [(prod(shape), shape[-1]) for shape in given or [graph.values[graph.inputs[0][1]].shape]]
    wide = {op.module: prod(local.values[op.outputs[0]].shape) for op in local.ops if op.target == "tp.gather"}
    found = []
    for one in collectives(local):
        elements = one.elements
        if one.kind is Kind.ALL_GATHER:
            elements = wide.get(one.module, one.elements * degree)
        tokens, length = next((text for text in texts if elements % text[0] == 0), texts[-1])
        shared = elements % tokens != 0
        each = elements // (length if shared else tokens)
        per = Per.POSITION if shared else Per.TOKEN
        found.append(Traffic(one.kind, units.of(one.module), each, one.backward, per))
    return tuple(found)


def _gradients(graph: Graph, styles: Mapping[str, str], units: "_Units") -> Iterator[Traffic]:
    """Whole parameters whose gradient is summed over the ranks: one collective each, in every step."""
    for module in graph.modules:
        for local, number in module.parameters:
            keys = map(generic, (join(module.path, local), module.path))
            style = STYLES.get(next((styles[key] for key in keys if key in styles), ""))
            if style is not None and style.grad_allreduce:
                size = prod(graph.values[number].shape)
                yield Traffic(Kind.ALL_REDUCE, units.of(module.path), size, backward=True, per=Per.STEP)


def _summed(graph: Graph, plan: Plan, prefix: str, units: "_Units") -> tuple[Traffic, ...]:
    """Every dispatch sums its output over the ranks."""
    hidden = _hidden(graph, units)
    found = dispatches(graph, plan, prefix)
    return tuple(Traffic(Kind.ALL_REDUCE, units.of(module.path), hidden, False) for module in found)


def _hidden(graph: Graph, units: _Units) -> int:
    """The width of what one layer hands to the next."""
    layers = [f"{units.stack}.{number}" for number in range(units.depth)]
    outputs = {call.module: call.outputs for call in graph.calls}
    widths = [graph.values[outputs[layer][0]].shape[-1] for layer in layers if outputs.get(layer)]
    assert all(a == b for a, b in pairwise(widths))
    return widths[0] if widths else max(graph.values[number].shape[-1] for _, number in graph.outputs)
