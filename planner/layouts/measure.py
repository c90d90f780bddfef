"""The facts of a model that a search needs, from its trace, one rank's program and the cache it fills."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import TypeAlias

from torch import nn

from shardproof.planner.inputs.example import Sizes, example_inputs
from shardproof.planner.ir.dataflow import Cut, Role, live_across
from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.placement import R
from shardproof.planner.ir.plan import Plan, generic, join
from shardproof.planner.ir.styles import STYLES
from shardproof.planner.layouts.cost import Facts, Handed, Kept, Parameter, Per, Traffic
from shardproof.planner.layouts.experts import dispatches, with_experts, without_experts
from shardproof.planner.propagation.assign import Assigned, assign
from shardproof.planner.propagation.backward import has_gradient
from shardproof.planner.propagation.collectives import Collective, Kind, collectives, reached, with_gradient
from shardproof.planner.tracing.decode_cache import cache_tensors
from shardproof.planner.tracing.module_tree import layer_stack
from shardproof.planner.tracing.programs import local_program, program_for, subject_of
from shardproof.planner.tracing.trace import TraceError


def measure(
    model: nn.Module,
    plan: Plan,
    degrees: Degrees,
    *,
    context: int,
    train: bool = False,
    experts: bool = False,
    known: Facts | None = None,
) -> Facts:
    """The facts of a meta-device model under a plan; the rank's program is taken at the least legal degree above 1.

    To `train` it, what a gradient reaches is asked of a forward of `context` tokens: some weights only take part in long texts.
    With `experts` its experts lie whole on the ranks, by the expert plan, and the traffic is that of serving; `known` are the
    facts without them, whose cache is the same, because experts keep nothing between steps.
    """
    subject = subject_of(model)
    graph, prefix = subject.graph, subject.prefix
    given = without_experts(plan) if experts else plan
    assigned = assign(graph, given.styles(prefix), base_prefix=prefix)
    lying = with_experts(graph, plan, prefix) if experts else assigned
    units = _Units(model, graph, plan, prefix)
    degree = next((one for one in degrees.legal if one > 1), 1)
    traffic = _traffic(model, assigned, degree, units) if degree > 1 else ()
    summed = _summed(graph, plan, prefix, units) if experts else ()
    return Facts(
        parameters=_parameters(graph, lying, units, _trained(model, _of_length(model, context) if train else graph)),
        traffic=(*traffic, *_gradients(graph, given.styles(prefix), units), *summed),
        depth=units.depth,
        hidden=_hidden(graph, units),
        cache=known.cache if known else _cache(model, assigned, degree, context),
        handed=known.handed if known else _handed(graph, units),
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

    def __init__(self, model: nn.Module, graph: Graph, plan: Plan, prefix: str) -> None:
        self.listed = [join(prefix, entry.module) for entry in plan.pp] + [entry.module for entry in plan.head_pp]
        self.stack = layer_stack(model, self.listed)
        names = [path.rpartition(".") for path in graph.module_of]
        self.depth = sum(1 for parent, _, name in names if parent == self.stack and name.isdigit())

    def of(self, path: str) -> int:
        """Layers by their number; what the plan lists after them, or what is not in the base model, is after."""
        if self.stack is not None and path.startswith(f"{self.stack}."):
            return int(path.removeprefix(f"{self.stack}.").partition(".")[0]) + 1
        place = next((at for at, name in enumerate(self.listed) if path == name or path.startswith(f"{name}.")), 0)
        behind = self.stack is not None and place > self.listed.index(self.stack)
        return self.depth + 1 if behind else 0


def _of_length(model: nn.Module, context: int) -> Graph:
    """The program for one text of that length; the usual one where the model refuses it."""
    try:
        return program_for(model, example_inputs(model, Sizes(1, context, context)))
    except TraceError:
        return subject_of(model).graph


def _parameters(graph: Graph, assigned: Assigned, units: _Units, trained: set[str]) -> tuple[Parameter, ...]:
    """Tied names are one parameter that several units use."""
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
        )
        for number, used in users.items()
    )


def _trained(model: nn.Module, graph: Graph) -> set[str]:
    """The names of the parameters that get a gradient: in a repeated layer those that get one in the layer it repeats."""
    frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
    found = reached(graph)
    shown: dict[str, str] = {}
    for module in graph.modules:  # parents come before what is in them
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
    """Of stacked experts, the share that the layer's own choice of the best (`topk` over as many) sends a token to."""
    if len(shape) < 3:
        return 1.0
    shares = [
        graph.values[op.outputs[0]].shape[-1] / shape[0]
        for op in graph.ops
        if "topk" in op.target and op.inputs and graph.values[op.inputs[0]].shape[-1:] == (shape[0],)
    ]
    return min(shares, default=1.0)


def _traffic(model: nn.Module, assigned: Assigned, degree: int, units: "_Units") -> tuple[Traffic, ...]:
    """What a rank's program issues, and by its program for more and longer sequences how that grows."""
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
    """One collective of a program for two sizes. Where data tells how many rows there are, every token is taken for one."""
    if one.row is not None:
        gathers = one.kind is Kind.ALL_GATHER
        each = one.row * (degree if gathers else 1)
        return Traffic(one.kind, unit, each, one.backward, width=one.width, estimated=True)
    each, fixed, per = _grown(_together(one), _together(two), texts)
    return Traffic(one.kind, unit, each, one.backward, per, fixed, one.width)


def _together(one: Collective) -> int:
    """The elements that all ranks have together: a gather's are those of the gathered tensor."""
    return one.made if one.kind is Kind.ALL_GATHER else one.elements


LONGER = Sizes(5, 29, 19)
"""Other numbers of rows and tokens than a trace has, with no common factor."""


Text: TypeAlias = "tuple[int, int]"
"""Rows and tokens of one input."""


def _texts(graph: Graph) -> list[Text]:
    """Of every input of ids, else of the first input; then of states that another model made of a text of its own."""
    given = [graph.values[number].shape for name, number in graph.inputs if name.endswith("input_ids")]
    states = [graph.values[number].shape for name, number in graph.inputs if name.endswith("_states")]
    shapes = [*(given or [graph.values[graph.inputs[0][1]].shape]), *states]
    return list(dict.fromkeys((shape[0], shape[1] if len(shape) > 1 else 1) for shape in shapes))


def _grown(one: int, two: int, texts: Sequence[tuple[Text, Text]]) -> tuple[int, int, Per]:
    """From the elements for each of two sizes: those of a token (or position, or step), the fixed ones, and which it is.

    An encoder and a decoder have a text each. Where nothing else fits, the elements of a token, rounded down.
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
    """Slope and offset in whole numbers, of a row where rows do not share it."""
    (rows, length), (more, longer) = ((1 if shared else text[0], text[1]) for text in (first, second))
    if one % rows or two % more:
        return None
    one, two = one // rows, two // more
    if length == longer:
        return None if one != two or one % length else (one // length, 0)
    slope, rest = divmod(two - one, longer - length)
    return None if rest or slope < 0 else (slope, one - slope * length)


def _handed(graph: Graph, units: "_Units") -> tuple[tuple[Handed, ...], ...]:
    """What passes each cut between two layers, all that the next stages cannot make themselves."""
    if units.stack is None:
        return ()
    before, trained = tuple(units.listed[: units.listed.index(units.stack)]), with_gradient(graph)
    cuts = (live_across(graph, Cut(units.stack, layer, before)) for layer in range(1, units.depth))
    carried = ([one.value for one in cut if one.role is Role.SENT] for cut in cuts)
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
"""Bytes of an element that is no floating-point number."""


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
