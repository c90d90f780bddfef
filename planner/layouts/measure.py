"""The facts of a model that the search for layouts needs, from its trace, one rank's program and the cache that it fills."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import TypeAlias

from torch import nn

from shardproof.planner.inputs.example import Sizes, example_inputs
from shardproof.planner.ir.dataflow import Role, live_across_each
from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.placement import R
from shardproof.planner.ir.plan import Plan, generic, join
from shardproof.planner.ir.styles import STYLES
from shardproof.planner.layouts.cost import CachedTensor, Facts, Handed, Parameter, Per, Traffic
from shardproof.planner.propagation.assign import Assigned, assign
from shardproof.planner.propagation.backward import has_gradient
from shardproof.planner.propagation.collectives import Collective, Kind, collectives, gradient_flows_to, with_gradient
from shardproof.planner.propagation.expert_placements import dispatches, with_experts, without_experts
from shardproof.planner.tracing.decode_cache import cache_tensors
from shardproof.planner.tracing.module_tree import layer_stack
from shardproof.planner.tracing.programs import local_program, program_for, subject_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.weights.stored import StoredWeights


def measure(
    model: nn.Module,
    plan: Plan,
    degrees: Degrees,
    *,
    context: int,
    train: bool = False,
    experts: bool = False,
    known: Facts | None = None,
    stored: StoredWeights | None = None,
) -> Facts:
    """The facts of a meta-device model under a plan. The rank's program is traced at the least legal degree above 1.

    With `train`, a forward of `context` tokens decides which parameters a gradient reaches, because some weights are only
    used in long texts. With `experts`, whole experts are distributed over the ranks by the expert plan, and the traffic is
    that of serving; `known` are then the facts without `experts`, whose cache is reused, because experts keep nothing
    between steps. `stored` says how a quantised checkpoint stores its weights.
    """
    stored = stored or StoredWeights()
    subject = subject_of(model)
    graph, prefix = subject.graph, subject.prefix
    given = without_experts(plan) if experts else plan
    assigned = assign(graph, given.styles(prefix), base_prefix=prefix)
    lying = with_experts(graph, plan, prefix) if experts else assigned
    units = _Units(model, graph, plan, prefix)
    degree = next((one for one in degrees.legal if one > 1), 1)
    traffic = _traffic(model, assigned, degree, units) if degree > 1 else ()
    summed = _summed(graph, plan, prefix, units) if experts else ()
    trained = _trained(model, _of_length(model, context) if train else graph)
    return Facts(
        parameters=_parameters(graph, lying, units, trained, stored.widths),
        traffic=(*traffic, *_gradients(graph, given.styles(prefix), units), *summed),
        depth=units.depth,
        hidden=_hidden(graph, units),
        cache=known.cache if known else _cache(model, assigned, degree, context),
        handed=known.handed if known else _handed(graph, units),
        unknown=stored.unknown,
    )


def _cache(
    model: nn.Module, assigned: Assigned, degree: int, context: int
) -> tuple[tuple[CachedTensor, ...], ...] | None:
    """The tensors that each layer keeps for one sequence; a tensor that is smaller on one rank is sharded. None if unknown."""
    whole = cache_tensors(model, Assigned({}, {}), 1, context=context)
    part = cache_tensors(model, assigned, degree, context=context) if degree > 1 else whole
    if whole is None or part is None or [len(one) for one in whole] != [len(one) for one in part]:
        return None
    return tuple(
        tuple(CachedTensor(count, width, mine < count) for (count, width), (mine, _) in zip(*layer, strict=True))
        for layer in zip(whole, part, strict=True)
    )


class _Units:
    """The unit of each module: by the order of the pipeline plan, with one unit per layer."""

    def __init__(self, model: nn.Module, graph: Graph, plan: Plan, prefix: str) -> None:
        self.listed = [join(prefix, entry.module) for entry in plan.pp] + [entry.module for entry in plan.head_pp]
        self.stack = layer_stack(model, self.listed)
        names = [path.rpartition(".") for path in graph.module_of]
        self.depth = sum(1 for parent, _, name in names if parent == self.stack and name.isdigit())

    def of(self, path: str) -> int:
        """A layer's own unit; the last unit for modules that the plan lists after the layers or that are outside the base
        model.
        """
        if self.stack is not None and path.startswith(f"{self.stack}."):
            return int(path.removeprefix(f"{self.stack}.").partition(".")[0]) + 1
        place = next((at for at, name in enumerate(self.listed) if path == name or path.startswith(f"{name}.")), 0)
        behind = self.stack is not None and place > self.listed.index(self.stack)
        return self.depth + 1 if behind else 0


def _of_length(model: nn.Module, context: int) -> Graph:
    """The program for one text of `context` tokens; the usual one if the model refuses that length."""
    try:
        return program_for(model, example_inputs(model, Sizes(1, context, context)))
    except TraceError:
        return subject_of(model).graph


def _parameters(
    graph: Graph, assigned: Assigned, units: _Units, trained: set[str], widths: Mapping[str, float]
) -> tuple[Parameter, ...]:
    """The parameters; tied names are one parameter that several units use."""
    users: dict[int, set[int]] = {}
    names: dict[int, list[str]] = {}
    for module in graph.modules:
        for local, number in module.parameters:
            users.setdefault(number, set()).add(units.of(module.path))
            names.setdefault(number, []).append(join(module.path, local))
    looked_up: dict[int, set[int]] = {}
    read: set[int] = set()
    for op in graph.ops:
        if "embedding" in op.target:
            looked_up.setdefault(op.inputs[0], set()).add(units.of(op.module))
            read.update(op.inputs[1:])
        else:
            read.update(op.inputs)
    return tuple(
        Parameter(
            shape := graph.values[number].shape,
            next((assigned.parameters[name][0] for name in names[number] if name in assigned.parameters), R),
            frozenset(used),
            _active(graph, shape),
            frozenset(looked_up.get(number, ())),
            not trained.isdisjoint(names[number]),
            number in looked_up and number not in read,
            next((widths[path] for name in names[number] if (path := name.rpartition(".")[0]) in widths), None),
        )
        for number, used in users.items()
    )


def _trained(model: nn.Module, graph: Graph) -> set[str]:
    """The names of the parameters that a gradient reaches; a repeated layer is like the layer that stands for it."""
    frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
    found = gradient_flows_to(graph)
    shown: dict[str, str] = {}
    for module in graph.modules:  # parents come before their children
        parent, _, name = module.path.rpartition(".")
        first = module.repeats or (join(shown[parent], name) if module.path else "")
        shown[module.path] = shown.get(first, first)  # a repeated layer may have repeated parts
    named = (
        (join(module.path, local), first)
        for module in graph.modules
        for (local, _), (_, first) in zip(
            module.parameters, graph.module_of[shown[module.path]].parameters, strict=True
        )
    )
    return {name for name, first in named if first in found and name not in frozen}


def _active(graph: Graph, shape: tuple[int, ...]) -> float:
    """The share of stacked experts that a token is sent to, by the layer's `topk` over as many experts; 1 for other
    parameters.
    """
    if len(shape) < 3:
        return 1.0
    shares = [
        graph.values[op.outputs[0]].shape[-1] / shape[0]
        for op in graph.ops
        if "topk" in op.target and op.inputs and graph.values[op.inputs[0]].shape[-1:] == (shape[0],)
    ]
    return min(shares, default=1.0)


def _traffic(model: nn.Module, assigned: Assigned, degree: int, units: "_Units") -> tuple[Traffic, ...]:
    """The collectives of a rank's program. A second program with more and longer sequences shows how their sizes grow."""
    first = local_program(model, assigned, degree)
    try:
        second = local_program(model, assigned, degree, example_inputs(model, LONGER))
    except TraceError:  # a model of one length
        second = first
    told, again = collectives(first), collectives(second)
    if [_same(one) for one in told] != [_same(one) for one in again]:
        second, again = first, told
    texts = list(zip(_texts(first), _texts(second), strict=True))
    texts = [(one, two) for one, two in texts if one != two] or texts
    return tuple(_grows(one, two, degree, units.of(one.module), texts) for one, two in zip(told, again, strict=True))


def _same(one: Collective) -> tuple[Kind, str, bool]:
    return one.kind, one.module, one.backward


def _grows(one: Collective, two: Collective, degree: int, unit: int, texts: Sequence["tuple[Text, Text]"]) -> Traffic:
    """One collective, from two programs with different input sizes. If data decide the number of rows, every token counts
    as one.
    """
    if one.row is not None:
        gathers = one.kind is Kind.ALL_GATHER
        each = one.row * (degree if gathers else 1)
        return Traffic(one.kind, unit, each, one.backward, width=one.width, estimated=True)
    each, fixed, per = _grown(_together(one), _together(two), texts)
    return Traffic(one.kind, unit, each, one.backward, per, fixed, one.width)


def _together(one: Collective) -> int:
    """The elements over all ranks; for an all-gather, those of the gathered tensor."""
    return one.made if one.kind is Kind.ALL_GATHER else one.elements


LONGER = Sizes(5, 29, 19)
"""Other numbers of rows and tokens than those of the usual trace, without common factors."""


Text: TypeAlias = "tuple[int, int]"
"""Rows and tokens of one input."""


def _texts(graph: Graph) -> list[Text]:
    """Rows and tokens of every input with token ids, else of the first input; then of hidden states from another model."""
    given = [graph.values[number].shape for name, number in graph.inputs if name.endswith("input_ids")]
    states = [graph.values[number].shape for name, number in graph.inputs if name.endswith("_states")]
    shapes = [*(given or [graph.values[graph.inputs[0][1]].shape]), *states]
    return list(dict.fromkeys((shape[0], shape[1] if len(shape) > 1 else 1) for shape in shapes))


def _grown(one: int, two: int, texts: Sequence[tuple[Text, Text]]) -> tuple[int, int, Per]:
    """From the elements at each of two input sizes: the elements per token (or position, or step), the fixed ones, and
    which it is.

    An encoder and a decoder have separate texts. If nothing else fits, the result is the elements per token, rounded down.
    """
    if one == two and any(first != second for first, second in texts):
        return one, 0, Per.STEP
    fits = [
        (*found, per)
        for (first, second) in texts
        for per in (Per.TOKEN, Per.POSITION)
        if (found := _line(one, two, first, second, shared=per is Per.POSITION)) is not None
    ]
    exact = (found for found in fits if found[1] == 0)
    rows, length = texts[-1][0]
    return next(exact, fits[0] if fits else (one // (rows * length), 0, Per.TOKEN))


def _line(one: int, two: int, first: Text, second: Text, *, shared: bool) -> tuple[int, int] | None:
    """Integer slope and offset of the elements over tokens (positions if rows share them); None if no integers fit."""
    (rows, length), (more, longer) = ((1 if shared else text[0], text[1]) for text in (first, second))
    if one % rows or two % more:
        return None
    one, two = one // rows, two // more
    if length == longer:
        return None if one != two or one % length else (one // length, 0)
    slope, rest = divmod(two - one, longer - length)
    return None if rest or slope < 0 else (slope, one - slope * length)


def _handed(graph: Graph, units: "_Units") -> tuple[tuple[Handed, ...], ...]:
    """The tensors to send at each cut between two layers: all values that later stages cannot compute themselves."""
    if units.stack is None:
        return ()
    before, trained = tuple(units.listed[: units.listed.index(units.stack)]), with_gradient(graph)
    cuts = live_across_each(graph, units.stack, range(1, units.depth), before)
    carried = ([one.value for one in cut if one.role is Role.SENT] for cut in cuts.values())
    return tuple(tuple(_passed(graph, value, returned=value in trained) for value in values) for values in carried)


def _passed(graph: Graph, number: int, *, returned: bool) -> Handed:
    value = graph.values[number]
    elements, texts = prod(value.shape), _texts(graph)
    rows, length = next((text for text in texts if elements % prod(text) == 0), texts[-1])
    shared = elements % (rows * length) != 0
    each = elements // (length if shared else rows * length)
    width = None if has_gradient(value.dtype) else _WIDTHS.get(value.dtype, 8)
    return Handed(each, width, returned=returned, per=Per.POSITION if shared else Per.TOKEN)


_WIDTHS = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "int32": 4}
"""Bytes of an element that is not a floating-point number."""


def _gradients(graph: Graph, styles: Mapping[str, str], units: "_Units") -> Iterator[Traffic]:
    """One all-reduce per step for each replicated parameter whose gradient is summed over the ranks."""
    for module in graph.modules:
        for local, number in module.parameters:
            keys = map(generic, (join(module.path, local), module.path))
            style = STYLES.get(next((styles[key] for key in keys if key in styles), ""))
            if style is not None and style.grad_allreduce:
                size = prod(graph.values[number].shape)
                yield Traffic(Kind.ALL_REDUCE, units.of(module.path), size, backward=True, per=Per.STEP)


def _summed(graph: Graph, plan: Plan, prefix: str, units: "_Units") -> tuple[Traffic, ...]:
    """The all-reduce of the output of every expert dispatch."""
    hidden = _hidden(graph, units)
    found = dispatches(graph, plan, prefix)
    return tuple(Traffic(Kind.ALL_REDUCE, units.of(module.path), hidden, False) for module in found)


def _hidden(graph: Graph, units: _Units) -> int:
    """The width of the hidden states between layers."""
    layers = [f"{units.stack}.{number}" for number in range(units.depth)]
    outputs = {call.module: call.outputs for call in graph.calls}
    widths = [graph.values[outputs[layer][0]].shape[-1] for layer in layers if outputs.get(layer)]
    assert all(a == b for a, b in pairwise(widths))
    shapes = (graph.values[number].shape for _, number in graph.outputs)
    return widths[0] if widths else max((shape[-1] for shape in shapes if shape), default=0)
