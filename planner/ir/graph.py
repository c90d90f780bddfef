"""The computation of one model call as frozen data: the module tree and the ops that ran.

A graph prints one op per line, and checks its invariants on construction. Values are numbered; a
parameter or buffer is a value with its qualified name. No torch here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.plan import generic, keyed

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ref:
    """A value as an argument of an op."""

    value: int

    def __str__(self) -> str:
        return f"%{self.value}"


Arg: TypeAlias = "Ref | int | float | str | bool | tuple[Arg, ...] | None"


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor: its shape, its dtype, and its name if it existed before the forward (a parameter, a buffer, an attribute of a
    module) or is a constant.

    `content` is a digest of a constant's elements. A value with neither a name from the model nor a content was computed by
    code that was not recorded: it is unknown.
    """

    shape: Shape
    dtype: str
    name: str | None = None
    content: str = ""

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


CONSTANT, UNRECORDED = "constant:", "unrecorded:"
"""Prefixes of the names of constants, and of values computed by code that was not recorded."""

BRANCH = "branch"
"""The second argument of a `read` whose number only decides a branch (`if mask.any()`)."""

READ = "read"
"""The op that reads Python numbers off a tensor (`item`, `tolist`, `float`, a branch on it); it has no output tensor."""

GRADIENT_OF, OWN_BACKWARD = "gradient_of", "own_backward"
"""Ops that record a custom backward. `gradient_of(x)` is a gradient with the placement of `x`. `own_backward` replaces
values by new ones whose backward differs from that of the recorded forward; its arguments are the values, the inputs that
get gradients, and these gradients (None if they are unknown).
"""

NO_GRADIENT = (
    "detach",
    "aten.zeros_like",
    "aten.ones_like",
    "aten.full_like",
    "aten.empty_like",
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_full",
    "aten.new_empty",
    "aten.zero_",
    "aten.fill_",
    "aten.sign",
)
"""Ops through which no gradient flows, because their result does not depend on the values of their inputs."""

STRIDED = "strided"
"""An argument of an op that marks a tensor whose strides allow no view as rows."""


@dataclass(frozen=True, slots=True)
class Op:
    """One op that ran: `target` is its name, `module` the module whose forward ran it, `source` the line. `constant` is
    true if it ran under `no_grad`, so that no gradient flows through it.
    """

    target: str
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    outputs: tuple[int, ...]
    module: str
    source: Source | None = None
    constant: bool = False
    inputs: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The numbers of the values used, in argument order, with repeats."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(refs((*self.args, *(value for _, value in self.kwargs)))))

    def arg(self, position: int, name: str, default: Arg = None) -> Arg:
        """An argument that was passed by position or by name, else `default`."""
        if position < len(self.args):
            return self.args[position]
        return dict(self.kwargs).get(name, default)


@dataclass(frozen=True, slots=True)
class Module:
    """One module: its path, its class, its own parameters and buffers (local name -> value), and the path of the module that
    stands for it in the trace, if any.

    `numbers` are its integer attributes, such as `in_features` and `num_heads`.
    """

    path: str
    kind: str
    parameters: tuple[tuple[str, int], ...] = ()
    numbers: tuple[tuple[str, int], ...] = ()
    bases: tuple[str, ...] = ()
    repeats: str | None = None
    buffers: tuple[tuple[str, int], ...] = ()
    automatic: str = ""
    """The style that Transformers gives it without an entry, if its model has any entry; empty for most modules."""
    inner: bool = False
    """Whether it is a model in the base model that reads the base model's config (`transformers_facts/composed_plan.py`)."""


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One call of a module: its tensor arguments by the names in its forward (the members of a tuple share a name), its
    results, and the half-open range of positions of the ops that it ran.
    """

    module: str
    arguments: tuple[tuple[str, int], ...]
    outputs: tuple[int, ...]
    ran: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Graph:
    """One call of a model. `values` are indexed by number; ops and module calls are in execution order."""

    modules: tuple[Module, ...]
    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = field(default=())
    written: tuple[tuple[int, str], ...] = ()
    """In-place ops on an output that a client's hook made, with gradients on: position of the op, path of the module."""
    branches: tuple[Source, ...] = ()
    """Source lines that branch on the values of a tensor; one side was traced."""
    calls: tuple[ModuleCall, ...] = ()
    unlike: frozenset[str] = frozenset()
    """Paths of lists of unlike modules, whose numbers stay in keys; empty for Transformers models, whose keys cannot say them."""

    any_module: bool = False
    """Whether this is no Transformers model, so that its plan is for runtimes that know packed blocks of any sizes."""
    leaves: tuple[str, ...] = ()
    """Paths of modules whose attributes are others after the forward: a next one may read what this one left there."""

    def key(self, path: str) -> str:
        """The key of a module or a parameter in a plan."""
        return keyed(path, self.unlike)

    def __post_init__(self) -> None:
        made = {number for _, number in self.inputs}
        made |= {number for number, value in enumerate(self.values) if value.name is not None}
        for position, op in enumerate(self.ops):
            for number in op.inputs:
                if number not in made:
                    raise ValueError(f"op {position} ({op.target}) uses %{number} before it is made.")
            made |= set(op.outputs)
        if missing := [name for name, number in self.outputs if number not in made]:
            raise ValueError(f"output {missing[0]!r} is never made.")

    @cached_property
    def module_of(self) -> Mapping[str, Module]:
        """Modules by path."""
        return {module.path: module for module in self.modules}

    @cached_property
    def parameters(self) -> Mapping[str, int]:
        """Every name of a parameter or buffer (tied ones have several) -> its value number."""
        named = {
            value.name: number
            for number, value in enumerate(self.values)
            if value.name is not None and not value.name.startswith((CONSTANT, UNRECORDED))
        }
        for module in self.modules:
            for local, number in (*module.parameters, *module.buffers):
                named[f"{module.path}.{local}" if module.path else local] = number
        return named

    @cached_property
    def producer(self) -> Mapping[int, int]:
        """Value -> the position of the op that made it."""
        return {number: position for position, op in enumerate(self.ops) for number in op.outputs}

    @cached_property
    def users(self) -> Mapping[int, tuple[int, ...]]:
        """Value -> the positions of the ops that use it."""
        found: dict[int, list[int]] = {}
        for position, op in enumerate(self.ops):
            for number in dict.fromkeys(op.inputs):
                found.setdefault(number, []).append(position)
        return {number: tuple(positions) for number, positions in found.items()}

    @cached_property
    def hidden(self) -> "Hidden":
        """For each module, the values that it reads without receiving them as arguments."""
        return Hidden(self)

    @cached_property
    def used_parameters(self) -> frozenset[str]:
        """Patterns of the parameters that some op reads. A repeated module uses the parameters of the module that stands
        for it.
        """
        first = {module.path: module.repeats for module in self.modules if module.repeats is not None}
        return frozenset(
            generic(name)
            for name, number in self.parameters.items()
            if number in self.users or self._repeated(name, first) in self._read
        )

    @cached_property
    def _read(self) -> frozenset[str]:
        return frozenset(name for name, number in self.parameters.items() if number in self.users)

    @staticmethod
    def _repeated(name: str, first: Mapping[str, str]) -> str | None:
        """For a parameter of a repeated module, the parameter with the same name in the module that stands for it."""
        around = name
        while around := around.rpartition(".")[0]:
            if around in first:
                return first[around] + name.removeprefix(around)
        return None

    def __str__(self) -> str:
        lines = [f"input {name} %{number} {self.values[number]}" for name, number in self.inputs]
        lines += [self._line(op) for op in self.ops]
        lines += [f"output {name} %{number}" for name, number in self.outputs]
        return "\n".join(lines)

    def _line(self, op: Op) -> str:
        made = ", ".join(f"%{number}: {self.values[number]}" for number in op.outputs)
        given = [self._show(arg) for arg in op.args] + [f"{key}={self._show(arg)}" for key, arg in op.kwargs]
        where = f"  # {op.module}" + (f" {op.source}" if op.source else "")
        return f"{made} = {op.target}({', '.join(given)}){where}"

    def _show(self, arg: Arg) -> str:
        match arg:
            case Ref(number):
                return self.values[number].name or str(arg)
            case tuple():
                return f"[{', '.join(map(self._show, arg))}]"
            case _:
                return repr(arg)


class Hidden(dict[str, tuple[int, ...]]):
    """By layer, the values that it reads without receiving them as arguments, such as keys and values that an earlier layer
    put into a dictionary. A repeated layer reads what the layer that stands for it reads.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __missing__(self, module: str) -> tuple[int, ...]:
        graph = self.graph
        shown = graph.module_of[module].repeats or module if module in graph.module_of else module
        if shown != module:
            self[module] = self[shown]
            return self[module]
        given = {value for call in graph.calls if call.module == module for _, value in call.arguments}
        ops = [op for op in graph.ops if op.module == module or op.module.startswith(f"{module}.")]
        made = given.union(*(op.outputs for op in ops))
        read = dict.fromkeys(value for op in ops for value in op.inputs)
        self[module] = tuple(value for value in read if value not in made and value in graph.producer)
        return self[module]


def refs(args: tuple[Arg, ...]) -> Iterator[int]:
    """The values used anywhere in a tree of arguments, in order."""
    for arg in args:
        match arg:
            case Ref(number):
                yield number
            case tuple():
                yield from refs(arg)
            case _:
                pass
