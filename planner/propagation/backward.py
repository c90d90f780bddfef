"""The backward of a propagation: which replicated tensors get a gradient that is only this rank's share of it.

Every replicated value's gradient is either whole (equal on all ranks) or partial (the sum over ranks is still to be taken).
It turns partial where the value meets a shard: each rank then sees the part of the loss that runs through its shard. Hooks
of styles take the sum (`tp.enter`), and do not; a parameter whose gradient ends partial is trained wrongly, silently.
"""

from dataclasses import dataclass, field

from shardproof.planner.ir.graph import NO_GRADIENT, OWN_BACKWARD, Arg, Op, Ref
from shardproof.planner.ir.placement import Partial, R, Replicate, Shard, Unknown
from shardproof.planner.ir.plan import generic
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.propagation.forward.propagate import Propagation
from shardproof.planner.propagation.forward.relation import Pair
from shardproof.planner.propagation.rules.registry import semantics
from shardproof.planner.propagation.semantics import Call, Narrow

Roots = frozenset[int]
"""What a gradient is the sum of: -1 stands for contributions that are whole on every rank, any other number for the position
(in the local program) of an op where a contribution turned partial."""

WHOLE: Roots = frozenset({-1})
NONE: Roots = frozenset()


@dataclass(frozen=True, slots=True)
class GradientFault:
    """A parameter (by name) whose gradient stays partial, or is counted once per rank; `root` is where that began."""

    code: str
    parameter: str
    root: Op | None
    entry: str | None


@dataclass
class _Backward:
    ran: Propagation
    roots: dict[int, Roots] = field(default_factory=dict)
    reached: set[int] = field(default_factory=set)
    pieces: dict[int, dict[tuple[int, int, int], Roots]] = field(default_factory=dict)
    twice: list[int] = field(default_factory=list)
    lost: dict[int, Roots] = field(default_factory=dict)
    lost_in_own: list[int] = field(default_factory=list)

    def add(self, number: int, roots: Roots) -> None:
        self.reached.add(number)
        self.roots[number] = self.roots.get(number, NONE) | roots

    def of(self, number: int) -> Roots:
        pieces = self.pieces.get(number, {}).values()
        return self.roots.get(number, NONE).union(*pieces)


def gradient_faults(ran: Propagation, assigned: Assigned) -> tuple[GradientFault, ...]:
    """Run the backward of a propagation that got nowhere stuck."""
    state = _Backward(ran)
    for _, number in ran.local.outputs:
        state.add(number, WHOLE)
    for position in reversed(range(len(ran.pairs))):
        _back(state, ran.pairs[position], position)
    own = [
        GradientFault("TP220", op.module, op, None)
        for op in (ran.pairs[position].local for position in state.lost_in_own)
    ]
    return (*_of_parameters(state, assigned), *_counted_twice(state, assigned), *_lost(state, assigned), *own)


def nearest(ran: Propagation, faults: tuple[GradientFault, ...]) -> list[GradientFault]:
    """Of all parameters behind one partial gradient, the one nearest to where it begins: the others follow from it."""
    found: dict[object, GradientFault] = {}
    for fault in faults:
        key = (fault.code, generic(fault.root.module) if fault.root is not None else fault.parameter)
        if key not in found or _depth(ran, fault) >= _depth(ran, found[key]):
            found[key] = fault
    return list(found.values())


def _depth(ran: Propagation, fault: GradientFault) -> int:
    number = ran.local.parameters.get(fault.parameter)
    users = ran.local.users.get(number, ()) if number is not None else ()
    return max(users, default=-1)


def has_gradient(dtype: str) -> bool:
    """Whether autograd follows values of this dtype: floats, and the complex numbers of a rotary embedding."""
    return any(kind in dtype for kind in ("float", "complex"))


def _has_gradient(state: _Backward, number: int) -> bool:
    return has_gradient(state.ran.local.values[number].dtype)


def _back(state: _Backward, pair: Pair, position: int) -> None:
    op = pair.local
    reached = [number for number in op.outputs if number in state.reached or number in state.pieces]
    if not reached:
        return
    if pair.whole is None:
        _back_hook(state, op, position)
        return
    if op.target == OWN_BACKWARD:
        _back_own(state, op, position)
        return
    if op.target in NO_GRADIENT or op.constant:
        return
    meaning = semantics(Call(state.ran.local, op))
    if isinstance(meaning, Narrow):
        _back_narrow(state, op, meaning)
        return
    roots = NONE.union(*(state.of(number) for number in reached))
    placements = [state.ran.placements.get(number, R) for number in (*op.inputs, *op.outputs)]
    split = any(isinstance(placement, Shard | Partial) for placement in placements)
    for number in op.inputs:
        if not _has_gradient(state, number):
            continue
        placement = state.ran.placements.get(number, R)
        if isinstance(placement, Replicate) and split and op.target not in ALIKE:
            state.add(number, (roots - WHOLE) | {position})
        else:
            state.add(number, roots)


def _back_own(state: _Backward, op: Op, position: int) -> None:
    """A backward of the model's own: propagation has checked where its gradients lie. It may be anything but linear, so it must
    be given whole gradients.
    """
    roots = NONE.union(*(state.of(number) for number in op.outputs))
    _, inputs, gradients = op.args
    given = gradients if isinstance(gradients, tuple) else ()
    for number, gradient in zip(op.inputs[len(op.outputs) :], given, strict=False):
        if not isinstance(gradient, Ref) or number not in _numbers(inputs):
            continue
        placement = state.ran.placements.get(number, R)
        share = isinstance(placement, Replicate) and isinstance(state.ran.placements.get(gradient.value, R), Partial)
        if isinstance(placement, Replicate) and roots - WHOLE:
            state.lost_in_own.append(position)
        state.add(number, frozenset({position}) if share else roots)


def _numbers(arg: Arg) -> set[int]:
    return {one.value for one in arg if isinstance(one, Ref)} if isinstance(arg, tuple) else set()


ALIKE = ("aten.index_add_", "aten.copy_")
"""Ops on partial sums whose whole inputs are no factors: the zeros that are added to."""


def _back_narrow(state: _Backward, op: Op, meaning: Narrow) -> None:
    source = op.inputs[0]
    state.reached.add(source)
    pieces = state.pieces.setdefault(source, {})
    for number, start, length in zip(op.outputs, meaning.starts, meaning.lengths, strict=True):
        if number in state.reached or number in state.pieces:
            key = (meaning.dim, start, length)
            pieces[key] = pieces.get(key, NONE) | state.of(number)


def _back_hook(state: _Backward, op: Op, position: int) -> None:
    source, made = op.inputs[0], op.outputs[0]
    roots = state.of(made)
    match op.target:
        case "tp.enter":
            if -1 in roots and _has_gradient(state, source):
                state.twice.append(position)
            state.add(source, WHOLE)
        case "tp.divide":
            # Each rank's gradient is divided too: what they hold is a share each.
            state.add(source, frozenset({position}))
        case "tp.sequence":
            state.add(source, roots)
        case "tp.rope":
            _back_rope(state, op, source, made)
        case "tp.reduce" | "tp.gather":
            # The hook's backward hands every rank the gradient it holds: that must be the whole one.
            if roots - WHOLE:
                state.lost[position] = roots - WHOLE
            state.add(source, WHOLE)
        case _:
            state.add(source, WHOLE)


def _back_rope(state: _Backward, op: Op, source: int, made: int) -> None:
    width = op.args[1] if isinstance(op.args[1], int) else 0
    shape = state.ran.local.values[made].shape
    last, border = len(shape) - 1, shape[-1] - width
    state.add(source, state.roots.get(made, NONE))
    for (dim, start, length), roots in state.pieces.get(made, {}).items():
        reduced = dim == last and start >= border
        state.pieces.setdefault(source, {})[dim, start, length] = WHOLE if reduced else roots


def _of_parameters(state: _Backward, assigned: Assigned) -> list[GradientFault]:
    found: list[GradientFault] = []
    for module in state.ran.local.modules:
        style = assigned.modules.get(module.path)
        for local, number in module.parameters:
            placement = state.ran.placements.get(number, R)
            if not (number in state.reached or number in state.pieces) or isinstance(placement, Unknown | Shard):
                continue
            name = f"{module.path}.{local}" if module.path else local
            summed = style is not None and style[0].grad_allreduce
            partial, whole = state.of(number) - WHOLE, -1 in state.of(number)
            right = not whole if summed else not partial
            if isinstance(placement, Partial) or right:
                continue
            root = state.ran.pairs[max(partial)].local if partial else None
            code = "TP208" if summed else "TP207"
            found.append(GradientFault(code, name, root, style[1] if style else None))
    return found


def _counted_twice(state: _Backward, assigned: Assigned) -> list[GradientFault]:
    ops = [state.ran.pairs[position].local for position in state.twice]
    return [GradientFault("TP208", op.module, op, assigned.modules[op.module][1]) for op in ops]


def _lost(state: _Backward, assigned: Assigned) -> list[GradientFault]:
    found = []
    for position, roots in state.lost.items():
        op = state.ran.pairs[position].local
        root = state.ran.pairs[max(roots)].local
        found.append(GradientFault("TP207", op.module, root, assigned.modules[op.module][1]))
    return found
