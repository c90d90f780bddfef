"""What values of a graph derive from, and which of them a pipeline cut must carry: dataflow, from a few seeds onwards."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from shardproof.planner.ir.graph import OWN_BACKWARD, READ, Graph


def derived(graph: Graph, seeds: Iterable[int], *, without: str | None = None) -> frozenset[int]:
    """The seeds and every value computed from one of them, no op in the module `without` counting."""
    found = set(seeds)
    for op in graph.ops:
        if not found.isdisjoint(op.inputs) and not (without is not None and _inside(op.module, without)):
            found.update(op.outputs)
    return frozenset(found)


def live_ops(graph: Graph) -> frozenset[int]:
    """The positions of the ops that count: what they make reaches an output of the model, or is read off as a Python number."""
    needed = {number for _, number in graph.outputs}
    live: set[int] = set()
    for position in reversed(range(len(graph.ops))):
        op = graph.ops[position]
        if op.target in (READ, OWN_BACKWARD) or not needed.isdisjoint(op.outputs):
            live.add(position)
            needed.update(op.inputs)
    return frozenset(live)


def stream(graph: Graph) -> frozenset[int]:
    """Values that derive from a trained parameter: what a pipeline stage must be sent, for it cannot make it alone."""
    return derived(graph, (number for module in graph.modules for _, number in module.parameters))


def read_behind(graph: Graph, module: str, stack: str) -> bool:
    """Whether what runs behind the layers of `stack` reads a weight of a module, or of one in it, past that module."""
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
    """Values that derive from the caller's inputs."""
    return derived(graph, (number for _, number in graph.inputs))


class Role(Enum):
    """How the stage after a cut comes by a value that was made before it."""

    SENT = "sent"
    """It derives from weights of an earlier stage, and enters a layer as an argument."""
    RECOMPUTED = "recomputed"
    """It derives from nothing that the stage lacks: the caller's inputs, buffers, modules that every stage has."""
    MISSED = "missed"
    """It derives from weights of an earlier stage, and meets the results of later layers where nothing received can enter."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where a value enters a layer: the argument's name in the layer's forward, and which tensor of that argument."""

    layer: int
    argument: str
    leaf: int = 0


@dataclass(frozen=True, slots=True)
class Live:
    """One value that the stage after a cut needs, and that no layer after the cut has a part in.

    `made` and `used` are positions of ops: the op that made it (None for a parameter or buffer), and the first one after
    the cut that uses it so. `entrances` are all of its entrances into the layers after the cut, in the order they run.
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
        """Whether a module lies on an earlier stage only."""
        number = self.number(module)
        return (number is not None and number < self.layer) or any(_inside(module, path) for path in self.before)

    def number(self, module: str) -> int | None:
        """The layer that a module lies in, or is."""
        if not module.startswith(f"{self.stack}."):
            return None
        head = module[len(self.stack) + 1 :].partition(".")[0]
        return int(head) if head.isdigit() else None


def live_across(graph: Graph, cut: Cut) -> tuple[Live, ...]:
    """What the stage after a cut needs from before it, in the order of first use.

    A parameter is such a value only where every module that owns it lies on an earlier stage. Empty where the layer at the
    cut ran no op.
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
    """Of values to be sent, those that a plan's entry for the layers does not list among its inputs.

    An entry may call an argument as the caller does, which a trace does not know: each of its names that is no parameter of
    the layers stands for one argument, in the order they are needed.
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
    """`lost`: what derives from weights that the stage after the cut lacks; `after`: what derives from a layer after it."""

    lost: frozenset[int]
    after: frozenset[int]

    @property
    def sendable(self) -> frozenset[int]:
        """What the stages before the cut can make, and those after it cannot."""
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
            continue  # of a deep model most modules
        (absent if cut.lacks(module.path) else present).update(owned)
    return absent - present


def _entrances(graph: Graph, cut: Cut, sides: _Sides) -> dict[int, list[Entrance]]:
    """Where values to be sent enter the layers; of a layer that is called several times, the first call only."""
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
    """The ops that meet what comes from before the cut: those of the layers after it, and those on their results."""
    entered = {(entry.layer, value) for value, entries in entrances.items() for entry in entries}
    hidden = graph.hidden
    for position, op in enumerate(graph.ops[start:], start):
        layer = cut.number(op.module)
        if cut.lacks(op.module):  # behind the cut only where it runs again, on what a later layer gave
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
    """The module whose op made a value; the empty path for one that no op made."""
    return graph.ops[graph.producer[value]].module if value in graph.producer else ""


def _inside(module: str, path: str) -> bool:
    return module == path or module.startswith(f"{path}.")
