"""The contract of expert dispatch (`ep_dispatch_experts`), checked on the single-device program of a module.

Facts from Transformers 5.23.0, `distributed/expert_parallel.py`: the module is called with hidden states, expert ids and
routing weights, in this order. Its attribute `num_experts` becomes the number of a rank's experts. With `all_to_all` its
experts run with weights of one, and the caller multiplies by the routing weights and sums. So the output must be linear in
these weights, and the parameters of an expert may only be selected by its number.
"""

from collections.abc import Iterator

from shardproof.planner.ir.graph import BRANCH, READ, Graph, Module, ModuleCall, Op
from shardproof.planner.ir.plan import join
from shardproof.planner.propagation.rules.registry import semantics
from shardproof.planner.propagation.semantics import Call, Einsum, Fresh, Write

_PICKS = ("aten.select", "aten.index", "aten.index_select", "embedding")
_ZEROS = ("aten.zeros", "aten.zeros_like", "aten.new_zeros")


def stacked(graph: Graph, module: Module) -> int | None:
    """The number of stacked experts of a module: the size of dim 0, if all its parameters share it, and one of them has three
    dims; else None.
    """
    shapes = [graph.values[number].shape for _, number in module.parameters]
    if not shapes or min(map(len, shapes)) < 1 or max(map(len, shapes)) < 3 or len({shape[0] for shape in shapes}) > 1:
        return None
    return shapes[0][0]


def dispatch_fault(graph: Graph, module: Module, *, tried: bool = False) -> str | None:
    """The reason why tokens cannot be dispatched to a module's experts on other ranks; None if they can.

    With `tried`, the module is also run with numbers, which tells whether experts that meet an op all at once do so by rank.
    """
    count = stacked(graph, module)
    if count is None:
        return "its parameters are not stacked by expert along their first dim"
    if dict(module.numbers).get("num_experts") != count:
        return f"it has no `num_experts` of {count}, which the client sets to the number of a rank's experts"
    call = next((call for call in graph.calls if call.module == module.path), None)
    if call is None:
        return "it took no part in the traced forward"
    uses = None if tried else _use_fault(graph, module)
    return _signature_fault(graph, call, count) or uses or _weight_fault(graph, module, call)


def _signature_fault(graph: Graph, call: ModuleCall, count: int) -> str | None:
    given = [graph.values[number] for _, number in call.arguments]
    if len(given) != 3 or len(call.outputs) != 1:
        return "it is not called with hidden states, expert ids and routing weights"
    hidden, ids, weights = given
    if "int" not in ids.dtype or "float" not in weights.dtype or len(hidden.shape) != 2 or ids.shape != weights.shape:
        return "its arguments are not tokens, expert ids and one routing weight for each id"
    chosen = _chosen_among(graph, call.arguments[1][1])
    if chosen not in (None, count):
        return f"the ids count {chosen} choices, and {count} of them are experts"
    return None


def _chosen_among(graph: Graph, number: int) -> int | None:
    """The size of the dim from which a top-k picked the ids; None if no top-k is found."""
    for _ in range(8):
        position = graph.producer.get(number)
        if position is None:
            return None
        op = graph.ops[position]
        if op.target == "aten.topk":
            dim = op.arg(2, "dim", -1)
            return graph.values[op.inputs[0]].shape[dim if isinstance(dim, int) else -1]
        if not op.inputs:
            return None
        number = op.inputs[0]
    return None


def _use_fault(graph: Graph, module: Module) -> str | None:
    for local, number in module.parameters:
        for op in _uses(graph, number):
            name = join(module.path, local)
            return f"{name} meets {op.target.rpartition('.')[2]} with all experts at once ({op.source})"
    return None


def _uses(graph: Graph, number: int) -> Iterator[Op]:
    """The ops that use a stack of experts otherwise than one expert at a time, by its number or by the rows of its group."""
    for position in graph.users.get(number, ()):
        op = graph.ops[position]
        if op.target == "aten.transpose" and 0 not in _transposed(graph, op):
            yield from _uses(graph, op.outputs[0])
        elif op.target == "aten._grouped_mm":
            if op.inputs[0] == number or op.inputs[1] != number:
                yield op
        elif (
            op.target not in _PICKS
            or op.inputs[0] != number
            or (op.target == "aten.select" and op.arg(1, "dim", 0) != 0)
        ):
            yield op


def _transposed(graph: Graph, op: Op) -> set[object]:
    ndim = len(graph.values[op.inputs[0]].shape)
    return {dim % ndim if isinstance(dim, int) else 0 for dim in (op.arg(1, "dim0"), op.arg(2, "dim1"))}


def _weight_fault(graph: Graph, module: Module, call: ModuleCall) -> str | None:
    """The reason why the output is not linear in the routing weights, found by following them as a partial sum; None if it
    is.
    """
    summands, zeros = {call.arguments[2][1]}, set[int]()
    for op in graph.ops:
        if not _inside(op.module, module.path):
            continue
        if op.target in _ZEROS:
            zeros.update(op.outputs)
        if summands.intersection(op.inputs):
            if not _linear(graph, op, summands, zeros):
                return f"its output is not linear in the routing weights ({op.source})"
            summands.update(op.outputs)
        elif zeros.intersection(op.inputs) and _linear(graph, op, zeros, set()):
            zeros.update(op.outputs)
    branches = any(op.target == READ and BRANCH in op.args and _inside(op.module, module.path) for op in graph.ops)
    if call.outputs[0] not in summands and not branches:  # the branch that adds the experts' outputs may not have run
        return "its output does not depend on the routing weights"
    return None


def _inside(path: str, module: str) -> bool:
    return path == module or path.startswith(module + ".")


def _linear(graph: Graph, op: Op, summands: set[int], zeros: set[int]) -> bool:
    meaning = semantics(Call(graph, op))
    if isinstance(meaning, Einsum):
        given = frozenset(i for i, number in enumerate(op.inputs) if number in summands)
        either = frozenset(i for i, number in enumerate(op.inputs) if number in zeros)
        return any(given <= together <= given | either for together in meaning.linear)
    if isinstance(meaning, Write):
        return all(number in summands or number in zeros for number in op.inputs)
    return meaning is not None and not isinstance(meaning, Fresh)
