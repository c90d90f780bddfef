"""Which values of a graph depend on given values, and which values the stage after a pipeline cut needs."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import inf

from shardproof.planner.ir.graph import CONSTANT, OWN_BACKWARD, READ, Graph, ModuleCall, Op
from shardproof.planner.ir.plan import join


def derived(graph: Graph, seeds: Iterable[int], *, without: str | None = None) -> frozenset[int]:
    """The seeds and every value computed from one of them. Ops inside the module `without` are ignored."""
    found = set(seeds)
    for op in graph.ops:
        if not found.isdisjoint(op.inputs) and not (without is not None and _inside(op.module, without)):
            found.update(op.outputs)
    return frozenset(found)


def ops_between(graph: Graph, start: int, end: int) -> tuple[Op, ...]:
    """The ops on the way from one value to another, in order."""
    reached, wanted, found = derived(graph, (start,)), {end}, list[Op]()
    for op in reversed(graph.ops):
        if start not in op.outputs and not wanted.isdisjoint(op.outputs) and not reached.isdisjoint(op.inputs):
            wanted.update(number for number in op.inputs if number in reached and number != start)
            found.append(op)
    return tuple(reversed(found))


def live_ops(graph: Graph) -> frozenset[int]:
    """The positions of the ops whose result reaches an output of the model, is read as a Python number, or has a size that only
    data tells: code reads that without an op.
    """
    needed = {number for _, number in graph.outputs}
    live: set[int] = set()
    for position in reversed(range(len(graph.ops))):
        op = graph.ops[position]
        if op.target in (READ, OWN_BACKWARD) or sized_by_data(graph, op) or not needed.isdisjoint(op.outputs):
            live.add(position)
            needed.update(op.inputs)
    return frozenset(live)


SIZED_BY_DATA = frozenset({"aten.nonzero", "aten.masked_select", "aten._unique2"})
"""Ops whose results have as many elements as data says."""


def sized_by_data(graph: Graph, op: Op) -> bool:
    """Whether the size of an op's result depends on data: searches, and indexing by a mask."""
    masks = (graph.values[number].dtype == "bool" for number in op.inputs[1:])
    return op.target in SIZED_BY_DATA or (op.target == "aten.index" and any(masks))


def buffers_left(graph: Graph) -> Mapping[str, int]:
    """Buffers to which the forward wrote, by name, and the values that it leaves there."""
    return {
        join(module.path, own): number
        for module in graph.modules
        for own, number in module.buffers
        if number in graph.producer
    }


def buffers_read(graph: Graph) -> frozenset[str]:
    """Buffers of which an output depends on what they held before the forward."""
    live = live_ops(graph)
    held = {join(module.path, own) for module in graph.modules for own, _ in module.buffers}
    return frozenset(
        value.name
        for number, value in enumerate(graph.values)
        if value.name in held and not live.isdisjoint(graph.users.get(number, ()))
    )


def stream(graph: Graph) -> frozenset[int]:
    """Values that depend on a trained parameter. A stage without that parameter must receive them."""
    return derived(graph, (number for module in graph.modules for _, number in module.parameters))


def read_behind(graph: Graph, module: str, stack: str) -> bool:
    """Does code after the last layer of `stack` read this module's parameters directly, without calling the module?"""
    last = max((at for at, op in enumerate(graph.ops) if _inside(op.module, stack)), default=None)
    if last is None:
        return False
    owners: dict[int, set[bool]] = {}
    for one in graph.modules:
        for _, number in one.parameters:
            owners.setdefault(number, set()).add(_inside(one.path, module))
    own = {number for number, inside in owners.items() if inside == {True}}
    return any(not own.isdisjoint(op.inputs) for op in graph.ops[last + 1 :] if not _inside(op.module, module))


def from_inputs(graph: Graph) -> frozenset[int]:
    """Values that depend on the caller's inputs."""
    return derived(graph, (number for _, number in graph.inputs))


class Role(Enum):
    """How the stage after a cut gets a value that is computed before the cut."""

    SENT = "sent"
    """The value depends on weights of an earlier stage, and is an argument of a layer."""
    RECOMPUTED = "recomputed"
    """The value depends only on what every stage has: the caller's inputs, buffers, modules on all stages."""
    MISSED = "missed"
    """The value depends on weights of an earlier stage, and is used where no argument of a layer can bring it."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where a value enters a layer: the argument's name in the layer's forward, and which tensor of that argument."""

    layer: int
    argument: str
    leaf: int = 0


@dataclass(frozen=True, slots=True)
class Live:
    """One value that the stage after a cut needs and that does not depend on a layer after the cut.

    `made` and `used` are positions of ops: the op that computes the value (None for a parameter or buffer), and the first op
    after the cut that uses it in this role. `entrances` are the arguments of layers after the cut that hold it, in execution
    order.
    """

    value: int
    role: Role
    made: int | None
    used: int
    entrances: tuple[Entrance, ...] = ()


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut before layer `layer` (from 1) of the list `stack`; `before` are the modules that only the first stage has."""

    stack: str
    layer: int
    before: tuple[str, ...] = ()


def live_across(graph: Graph, cut: Cut) -> tuple[Live, ...]:
    """The values that the stage after a cut needs from before it, in the order of first use.

    A parameter counts only if every module that owns it is on an earlier stage. Empty if the layer at the cut ran no op.
    """
    return _Layers(graph, cut.stack, cut.before).live_across(cut.layer)


def live_across_each(
    graph: Graph, stack: str, layers: Iterable[int], before: tuple[str, ...]
) -> dict[int, tuple[Live, ...]]:
    """`live_across` of the cuts before each of these layers; the graph is read once."""
    found = _Layers(graph, stack, before)
    return {layer: found.live_across(layer) for layer in layers}


def unlisted(values: Iterable[Live], listed: Collection[str], parameters: Collection[str]) -> tuple[Live, ...]:
    """The values to be sent that the plan's entry for the layers does not list as inputs.

    An entry may use the caller's name of an argument, which a trace does not know. So each listed name that is no parameter of
    the layers' forward stands for one argument, in the order of first use.
    """
    free = len([name for name in listed if name not in parameters])
    passed, found = set(listed), list[Live]()
    for value in values:
        names = dict.fromkeys(entry.argument for entry in value.entrances)
        missing = [name for name in names if name not in passed]
        passed.update(missing[:free])
        free -= len(missing[:free])
        if value.role is Role.SENT and not passed.issuperset(names):
            found.append(value)
    return tuple(found)


class _Layers:
    """A graph as pipeline cuts see it: the layer that each op, call and weight belongs to."""

    def __init__(self, graph: Graph, stack: str, before: tuple[str, ...]) -> None:
        self.graph, self.stack, self.before = graph, stack, before
        self.at = {path: self._place(path) for path in {op.module for op in graph.ops}}
        self.ops = [self.at[op.module] for op in graph.ops]
        self.owner: dict[int, float] = {}
        """Of each parameter and buffer, the last place of a module that owns it."""
        for module in graph.modules:
            for _, number in (*module.parameters, *module.buffers):
                place = self._place(module.path)
                self.owner[number] = max(self.owner.get(number, place), place)

    def _place(self, module: str) -> float:
        """The layer that a module is or belongs to; `BEFORE` on the first stage only, `EVERY` on every stage."""
        if any(_inside(module, path) for path in self.before):
            return _BEFORE
        number = layer_number(module, self.stack)
        return _EVERY if number is None else number

    def live_across(self, layer: int) -> tuple[Live, ...]:
        """See the function of this name."""
        start = next((at for at, place in enumerate(self.ops) if place == layer), None)
        if start is None:
            return ()
        sides = self._sides(layer)
        entrances = self._entrances(layer, sides)
        found: dict[tuple[int, Role], Live] = {}
        for position, value, role in self._uses(layer, start, sides, entrances):
            into = tuple(entrances.get(value, ())) if role is Role.SENT else ()
            found.setdefault((value, role), Live(value, role, self.graph.producer.get(value), position, into))
        return tuple(found.values())

    def _sides(self, layer: int) -> "_Sides":
        lost = {number for number, place in self.owner.items() if place < layer}
        after = set[int]()
        for op, place in zip(self.graph.ops, self.ops, strict=True):
            later = not after.isdisjoint(op.inputs)
            if place < layer and self._constants.issuperset(op.outputs):
                continue  # whoever needs it makes it anew, as its stage's own program shows
            if place < layer:
                lost.update(op.outputs)
                after.update(op.outputs if later else ())
            elif later or place != _EVERY:
                after.update(op.outputs)
            elif not lost.isdisjoint(op.inputs):
                lost.update(op.outputs)
        return _Sides(lost, after)

    @cached_property
    def _constants(self) -> set[int]:
        """Values that are made of nothing but sizes, such as a table that the first layer makes and all layers keep."""
        found = {number for number, value in enumerate(self.graph.values) if (value.name or "").startswith(CONSTANT)}
        for op in self.graph.ops:
            if op.target in _MADE_OF_SIZES or (op.inputs and found.issuperset(op.inputs)):
                found.update(op.outputs)
        return found

    def _entrances(self, layer: int, sides: "_Sides") -> dict[int, list[Entrance]]:
        """The arguments of layers that hold values to be sent; only the first call of each layer counts."""
        found: dict[int, list[Entrance]] = {}
        wanted = sides.lost - sides.after
        for number, call in self._first_calls.items() if wanted else ():
            leaves: dict[str, int] = {}
            for name, value in call.arguments if number >= layer else ():
                leaf = leaves[name] = leaves.get(name, -1) + 1
                if value in wanted:
                    found.setdefault(value, []).append(Entrance(number, name, leaf))
        return found

    @cached_property
    def _first_calls(self) -> dict[int, ModuleCall]:
        """By layer, its first call, in the order of execution."""
        found: dict[int, ModuleCall] = {}
        for call in self.graph.calls:
            number = layer_number(call.module, self.stack)
            if number is not None and call.module == f"{self.stack}.{number}":
                found.setdefault(number, call)
        return found

    def _uses(
        self, layer: int, start: int, sides: "_Sides", entrances: Mapping[int, list[Entrance]]
    ) -> Iterator[tuple[int, int, Role]]:
        """Ops of the layers after the cut, and ops on their results, with each value from before the cut that they use."""
        entered = {(entry.layer, value) for value, entries in entrances.items() for entry in entries}
        graph, hidden = self.graph, self.graph.hidden
        for position in range(start, len(graph.ops)):
            op, place = graph.ops[position], self.ops[position]
            if place < layer:  # counts only if the module runs again, on the result of a later layer
                yield from ((position, value, Role.MISSED) for value in op.outputs if value in sides.after)
                continue
            if place == _EVERY and sides.after.isdisjoint(op.inputs):
                continue
            for value in dict.fromkeys((*op.inputs, *(hidden[op.module] if op.target == "repeat" else ()))):
                if value in sides.lost and not (value in sides.after and self._made_before(value, layer)):
                    yield position, value, Role.SENT if (place, value) in entered else Role.MISSED
                elif value in graph.producer and value not in sides.after:
                    yield position, value, Role.RECOMPUTED

    def _made_before(self, value: int, layer: int) -> bool:
        """Whether an op of an earlier stage computed a value."""
        made = self.graph.producer.get(value)
        return made is not None and self.ops[made] < layer


_BEFORE, _EVERY = -1, inf

_MADE_OF_SIZES = frozenset(
    ("constant", *(f"aten.{name}" for name in ("arange", "zeros", "ones", "full", "linspace", "eye")))
)
"""Ops that make a tensor from numbers alone."""


@dataclass(frozen=True, slots=True)
class _Sides:
    """`lost`: values that depend on weights that the stage after the cut lacks; `after`: values that depend on a layer
    after it.
    """

    lost: set[int]
    after: set[int]


def layer_number(module: str, stack: str) -> int | None:
    """The number of the layer of a list that a module is or belongs to; None outside the layers."""
    if not module.startswith(f"{stack}."):
        return None
    head = module[len(stack) + 1 :].partition(".")[0]
    return int(head) if head.isdigit() else None


def _inside(module: str, path: str) -> bool:
    return module == path or module.startswith(f"{path}.")
