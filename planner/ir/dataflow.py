"""Which values of a graph depend on given values, and which values the stage after a pipeline cut needs."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from shardproof.planner.ir.graph import OWN_BACKWARD, READ, Graph


def derived(graph: Graph, seeds: Iterable[int], *, without: str | None = None) -> frozenset[int]:
    """The seeds and every value computed from one of them. Ops inside the module `without` are ignored."""
    found = set(seeds)
    for op in graph.ops:
        if not found.isdisjoint(op.inputs) and not (without is not None and _inside(op.module, without)):
            found.update(op.outputs)
    return frozenset(found)


def live_ops(graph: Graph) -> frozenset[int]:
    """The positions of the ops whose result reaches an output of the model or is read as a Python number."""
    needed = {number for _, number in graph.outputs}
    live: set[int] = set()
    for position in reversed(range(len(graph.ops))):
        op = graph.ops[position]
        if op.target in (READ, OWN_BACKWARD) or not needed.isdisjoint(op.outputs):
            live.add(position)
            needed.update(op.inputs)
    return frozenset(live)


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


def given(graph: Graph) -> frozenset[int]:
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

    def lacks(self, module: str) -> bool:
        """Whether a module is on an earlier stage only."""
        number = self.number(module)
        return (number is not None and number < self.layer) or any(_inside(module, path) for path in self.before)

    def number(self, module: str) -> int | None:
        """The number of the layer that a module is or belongs to; None outside the layers."""
        if not module.startswith(f"{self.stack}."):
            return None
        head = module[len(self.stack) + 1 :].partition(".")[0]
        return int(head) if head.isdigit() else None


def live_across(graph: Graph, cut: Cut) -> tuple[Live, ...]:
    """The values that the stage after a cut needs from before it, in the order of first use.

    A parameter counts only if every module that owns it is on an earlier stage. Empty if the layer at the cut ran no op.
    """
    start = next((at for at, op in enumerate(graph.ops) if cut.number(op.module) == cut.layer), None)
    if start is None:
        return ()
    sides = _sides(graph, cut)
    entrances = _entrances(graph, cut, sides)
    found: dict[tuple[int, Role], Live] = {}
    for position, value, role in _uses(graph, cut, start, sides, entrances):
        into = tuple(entrances.get(value, ())) if role is Role.SENT else ()
        found.setdefault((value, role), Live(value, role, graph.producer.get(value), position, into))
    return tuple(found.values())


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


@dataclass(frozen=True, slots=True)
class _Sides:
    """`lost`: values that depend on weights that the stage after the cut lacks; `after`: values that depend on a layer
    after it.
    """

    lost: frozenset[int]
    after: frozenset[int]

    @property
    def sendable(self) -> frozenset[int]:
        """Values that only the stages before the cut can compute."""
        return self.lost - self.after


def _sides(graph: Graph, cut: Cut) -> _Sides:
    lost, after = _absent_weights(graph, cut), set[int]()
    for op in graph.ops:
        later = not after.isdisjoint(op.inputs)
        if cut.lacks(op.module):
            lost.update(op.outputs)
            after.update(op.outputs if later else ())
        elif later or cut.number(op.module) is not None:
            after.update(op.outputs)
        elif not lost.isdisjoint(op.inputs):
            lost.update(op.outputs)
    return _Sides(frozenset(lost), frozenset(after))


def _absent_weights(graph: Graph, cut: Cut) -> set[int]:
    absent, present = set[int](), set[int]()
    for module in graph.modules:
        owned = [number for _, number in (*module.parameters, *module.buffers)]
        if not owned:
            continue  # most modules of a deep model
        (absent if cut.lacks(module.path) else present).update(owned)
    return absent - present


def _entrances(graph: Graph, cut: Cut, sides: _Sides) -> dict[int, list[Entrance]]:
    """The arguments of layers that hold values to be sent; only the first call of each layer counts."""
    wanted, seen = sides.sendable, set[str]()
    found: dict[int, list[Entrance]] = {}
    for call in graph.calls:
        number = cut.number(call.module)
        if number is None or number < cut.layer or call.module != f"{cut.stack}.{number}" or call.module in seen:
            continue
        seen.add(call.module)
        leaves: dict[str, int] = {}
        for name, value in call.arguments:
            leaf = leaves[name] = leaves.get(name, -1) + 1
            if value in wanted:
                found.setdefault(value, []).append(Entrance(number, name, leaf))
    return found


def _uses(
    graph: Graph, cut: Cut, start: int, sides: _Sides, entrances: Mapping[int, list[Entrance]]
) -> Iterator[tuple[int, int, Role]]:
    """Ops of the layers after the cut, and ops on their results, with each value from before the cut that they use."""
    entered = {(entry.layer, value) for value, entries in entrances.items() for entry in entries}
    hidden = graph.hidden
    for position, op in enumerate(graph.ops[start:], start):
        layer = cut.number(op.module)
        if cut.lacks(op.module):  # counts only if the module runs again, on the result of a later layer
            yield from ((position, value, Role.MISSED) for value in op.outputs if value in sides.after)
            continue
        if layer is None and sides.after.isdisjoint(op.inputs):
            continue
        for value in dict.fromkeys((*op.inputs, *(hidden[op.module] if op.target == "repeat" else ()))):
            if value in sides.lost and not (value in sides.after and cut.lacks(_maker(graph, value))):
                yield position, value, Role.SENT if (layer, value) in entered else Role.MISSED
            elif value in graph.producer and value not in sides.after:
                yield position, value, Role.RECOMPUTED


def _maker(graph: Graph, value: int) -> str:
    """The module whose op computed a value; the empty path for an input, parameter or buffer."""
    return graph.ops[graph.producer[value]].module if value in graph.producer else ""


def _inside(module: str, path: str) -> bool:
    return module == path or module.startswith(f"{path}.")
