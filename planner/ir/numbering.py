"""Value numbering over several graphs: two values get the same number if the same computation made them.

A layer counts as one step: its output is determined by the layer and its arguments. So the program of a pipeline stage, in
which some layers are absent, can be compared with the whole program.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from shardproof.planner.ir.graph import Arg, Graph, ModuleCall, Op, Ref


@dataclass(slots=True)
class Numbers:
    """The numbers given so far, shared by all graphs that are compared; `names` says what each number stands for."""

    of: dict[Hashable, int] = field(default_factory=dict)

    def number(self, step: Hashable) -> int:
        """The number of a step; a new one for a new step."""
        return self.of.setdefault(step, len(self.of))


@dataclass(frozen=True, slots=True)
class Numbered:
    """A graph with the number of each value. `made` maps a number to the position of the first op outside the layers that
    computes it; `own` are the layers that were present, if not all were.
    """

    graph: Graph
    numbers: Numbers
    number: Mapping[int, int]
    made: Mapping[int, int]
    own: range | None = None


def numbered(
    graph: Graph,
    numbers: Numbers,
    *,
    stack: str | None = None,
    own: range | None = None,
    given: Mapping[str, int] | None = None,
    absent: Collection[str] = (),
) -> Numbered:
    """Number all values of a graph.

    Args:
        graph: the program.
        numbers: shared by the programs that are compared.
        stack: the path of the list of layers; None to number the ops inside layers one by one.
        own: the layers that are present; by default all. An absent layer is no step: its output is its input.
        given: inputs of the graph whose number is known, because the stage before sent them.
        absent: modules that return zeros; their output gets a number of its own.
    """
    return _Numbering(graph, numbers, stack, own, frozenset(absent)).run(given or {})


def _neutral(op: Op) -> bool:
    """Whether an op returns its input unchanged: a multiplication by one, an addition of zero, a copy."""
    match op.target, op.args[1:], op.kwargs:
        case (("aten.mul" | "aten.div"), (float() | int() as factor,), ()):
            return factor == 1
        case (("aten.add" | "aten.sub"), (float() | int() as addend,), ()):
            return addend == 0
        case (("aten.clone" | "aten.contiguous" | "aten.alias" | "aten.detach"), (), ()):
            return True
        case _:
            return False


@dataclass(frozen=True, slots=True)
class _LayerOps:
    """The ops of a layer, with their numeric arguments and flags, and the positions of the layer's arguments that no op
    reads.
    """

    ops: frozenset[Hashable]
    unused: frozenset[int]


class _OpsByLayer(dict[str, _LayerOps]):
    """The ops by layer. A layer that is an op `repeat` in the graph has the ops of the layer that it repeats."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.first = {call.module: call for call in reversed(graph.calls)}

    def __missing__(self, module: str) -> _LayerOps:
        graph = self.graph
        known = graph.module_of.get(module)
        shown = known.repeats or module if known is not None else module
        if shown != module:
            self[module] = self[shown]
            return self[module]
        ops = [op for op in graph.ops if op.module == module or op.module.startswith(f"{module}.")]
        kinds = frozenset((op.target, *_flags(op)) for op in ops if op.target != "repeat")
        call = self.first[module]
        read = self._read(ops).union(call.outputs)
        self[module] = _LayerOps(
            kinds, frozenset(at for at, (_, value) in enumerate(call.arguments) if value not in read)
        )
        return self[module]

    def _read(self, ops: Iterable[Op]) -> set[int]:
        """The values that ops read. An op `repeat` reads those of its arguments that the module it repeats reads."""
        read = set[int]()
        for op in ops:
            shown = self.graph.module_of[op.module].repeats if op.target == "repeat" else None
            if shown is None or not (shown in self.first and op.module in self.first):
                read.update(op.inputs)
            else:
                given = self.first[op.module].arguments
                read.update(value for at, (_, value) in enumerate(given) if at not in self[shown].unused)
        return read


def _flags(op: Op) -> tuple[Hashable, ...]:
    """The numeric arguments of an op, in order, and its flags."""
    return (*_numbers(op.args), *((name, value) for name, value in op.kwargs if isinstance(value, bool)))


def _numbers(args: tuple[Arg, ...]) -> Iterator[Hashable]:
    for arg in args:
        if isinstance(arg, tuple):
            yield from _numbers(arg)
        elif isinstance(arg, bool | int | float):
            yield repr(arg)


class _Numbering:
    def __init__(
        self, graph: Graph, numbers: Numbers, stack: str | None, own: range | None, absent: frozenset[str] = frozenset()
    ) -> None:
        self.graph, self.numbers, self.stack, self.own, self.absent = graph, numbers, stack, own, absent
        self.found: dict[int, int] = {}
        self.made: dict[int, int] = {}
        self.zeros: set[int] = set()
        self.hidden = graph.hidden
        self.inside = _OpsByLayer(graph)
        self.layer_of: dict[int, tuple[ModuleCall, int, int]] = {}
        calls: dict[str, int] = {}
        for call in graph.calls:
            layer = self._layer(call.module)
            if layer is None or call.module != f"{stack}.{layer}" or (own is not None and layer not in own):
                continue
            turn = calls[call.module] = calls.get(call.module, -1) + 1
            given = {value for _, value in call.arguments}
            for place, value in enumerate(call.outputs):
                if value not in given:
                    self.layer_of.setdefault(value, (call, turn, place))

    def run(self, given: Mapping[str, int]) -> Numbered:
        graph, numbers = self.graph, self.numbers
        for name, value in graph.inputs:
            self.found[value] = given[name] if name in given else numbers.number(("input", name))
        lacked = self._lacked()
        for value, kind in enumerate(graph.values):
            if kind.name is not None:
                self.found[value] = numbers.number(
                    ("absent", id(self), value) if value in lacked else ("named", kind.name)
                )
        for position, op in enumerate(graph.ops):
            if op.module in self.absent:
                self.found |= {value: numbers.number(("absent", id(self), value)) for value in op.outputs}
                self.zeros.update(op.outputs)
            elif (same := self._same_value(op)) is not None:
                self.found[op.outputs[0]] = self._of(same)
            else:
                self._number_results(op, position)
        for value in self.layer_of:
            self._of(value)
        return Numbered(graph, numbers, self.found, self.made, self.own)

    def _same_value(self, op: Op) -> int | None:
        """The input that an op returns unchanged, if it does: an identity, an absent layer, or a sum with zeros."""
        if _neutral(op) and isinstance(first := op.args[0], Ref):
            return first.value
        layer = self._layer(op.module)
        absent = layer is not None and self.own is not None and layer not in self.own
        return op.inputs[0] if op.target == "repeat" and absent else self._other_summand(op)

    def _number_results(self, op: Op, position: int) -> None:
        step = (op.target, self._args(op.args), tuple((key, self._args((arg,))) for key, arg in op.kwargs))
        layer = self._layer(op.module)
        inside = (layer,) if layer is not None else ()
        for place, value in enumerate(op.outputs):
            if value in self.layer_of:
                continue
            self.found[value] = self.numbers.number((*step, *inside, place))
            if layer is None:
                self.made.setdefault(self.found[value], position)

    def _other_summand(self, op: Op) -> int | None:
        """In a sum with the zeros of an absent module, the other summand."""
        if op.target != "aten.add" or len(op.inputs) != 2 or self.zeros.isdisjoint(op.inputs):
            return None
        (kept,) = [value for value in op.inputs if value not in self.zeros] or op.inputs[:1]
        shapes = [self.graph.values[value].shape for value in (kept, op.outputs[0])]
        return kept if shapes[0] == shapes[1] else None

    def _lacked(self) -> set[int]:
        """Weights that only absent modules hold."""
        owned: dict[bool, set[int]] = {True: set(), False: set()}
        for module in self.graph.modules if self.absent else ():
            heads = module.path.split(".")
            away = any(".".join(heads[:count]) in self.absent for count in range(1, len(heads) + 1))
            owned[away].update(number for _, number in (*module.parameters, *module.buffers))
        return owned[True] - owned[False]

    def _layer(self, module: str) -> int | None:
        if self.stack is None:
            return None
        inside = f"{self.stack}."
        head = module[len(inside) :].partition(".")[0] if module.startswith(inside) else ""
        return int(head) if head.isdigit() else None

    def _of(self, value: int) -> int:
        if value not in self.found:
            call, turn, place = self.layer_of[value]
            inside = self.inside[call.module]
            used = [argument for at, argument in enumerate(call.arguments) if at not in inside.unused]
            arguments = tuple((name, self._of(number)) for name, number in used)
            read = tuple(self._of(number) for number in self.hidden[call.module] if number in self.found)
            self.found[value] = self.numbers.number(("layer", call.module, turn, place, arguments, read, inside.ops))
        return self.found[value]

    def _args(self, args: tuple[Arg, ...]) -> tuple[Hashable, ...]:
        return tuple(
            ("value", self._of(arg.value))
            if isinstance(arg, Ref)
            else self._args(arg)
            if isinstance(arg, tuple)
            else (type(arg).__name__, arg)
            for arg in args
        )


def _ancestors(graph: Graph, value: int) -> set[int]:
    """The positions of the ops that a value depends on."""
    found, wanted = set[int](), {value}
    for position in range(len(graph.ops) - 1, -1, -1):
        op = graph.ops[position]
        if not wanted.isdisjoint(op.outputs):
            found.add(position)
            wanted.update(op.inputs)
    return found


def first_new(one: Numbered, value: int, other: Numbered) -> Op | None:
    """The first op outside the layers on which a value of one program depends and which the other program does not run."""
    known, ancestors = set(other.number.values()), _ancestors(one.graph, value)
    return next((one.graph.ops[at] for number, at in one.made.items() if at in ancestors and number not in known), None)
