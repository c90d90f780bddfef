"""The multiply-adds and the written elements of a program, exactly, from the shapes of its ops. No torch."""

from collections import Counter
from collections.abc import Callable, Iterator
from math import prod

from shardproof.planner.ir.graph import Graph, Op
from shardproof.planner.propagation.collectives import chosen_by_data, expanded, with_gradient

_VIEWS = frozenset(
    f"aten.{name}"
    for name in "view transpose permute expand unsqueeze squeeze select slice split split_with_sizes unbind chunk "
    "detach alias as_strided diagonal t unfold".split()
)


def multiply_adds(graph: Graph, *, length: int = 0, context: int = 0) -> float:
    """Of one forward: two matrices of `[m, k]` and `[k, n]` are `m k n`.

    Where data decide how many rows an expert gets, the rows that the routing deals out are spread over the experts that ran.
    With `context`, as if the text of `length` tokens had so many: each token then has more of them to attend to.
    """
    rows, longer = _weights(graph), context / length if length else 1.0
    return sum(
        _of(graph, op) * rows(op) * (longer if length and _attends(graph, op, length) else 1.0)
        for op in expanded(graph)
    )


def written(graph: Graph) -> float:
    """The activations that the ops of one forward write, in elements; a view writes none, nor does a hook in the backward."""
    rows, wanted = _weights(graph), with_gradient(graph)
    return sum(
        prod(graph.values[number].shape) * rows(op)
        for op in expanded(graph)
        if op.target not in _VIEWS and (not op.target.startswith("tp.") or op.target == "tp.gather")
        for number in op.outputs
        if number in wanted
    )


def _attends(graph: Graph, op: Op, length: int) -> bool:
    """Whether every token is multiplied with every other: attention, or a product of or to a square of the text's length."""
    square = any(graph.values[number].shape[-2:] == (length, length) for number in (*op.inputs, *op.outputs))
    return op.target == "attention" or (square and op.target in ("matmul", "aten.bmm", "aten.baddbmm", "einsum"))


def _weights(graph: Graph) -> Callable[[Op], float]:
    """How often an op counts: once, but for what acts on rows that data choose."""
    chosen, dealt = chosen_by_data(graph), _dealt(graph)
    return lambda op: dealt.get(op.module, 1.0) if not chosen.isdisjoint(op.inputs) else 1.0


def _dealt(graph: Graph) -> dict[str, float]:
    """For each module whose ops get rows that data choose: the rows that `topk` deals out, over the rows that were traced."""
    chosen = chosen_by_data(graph)
    traced: dict[str, dict[tuple[int, ...], int]] = {}
    for op in graph.ops:
        if op.target in ("linear", "matmul", "aten.mm") and op.inputs[0] in chosen:
            shapes = traced.setdefault(op.module, {})
            weight = graph.values[op.inputs[1]].shape
            shapes[weight] = shapes.get(weight, 0) + prod(graph.values[op.inputs[0]].shape[:-1])
    dealt = _chosen(graph)
    found = {}
    for module, shapes in traced.items():
        near = next((dealt[one] for one in _around(module, dealt)), None)
        if near is not None:
            found[module] = near / max(shapes.values())
    return found


def _chosen(graph: Graph) -> dict[str, int]:
    """For each module with a `topk`: the rows that the last one of each of its calls chooses."""
    calls = Counter(call.module for call in graph.calls)
    shapes: dict[str, list[int]] = {}
    for op in graph.ops:
        if "topk" in op.target:
            shapes.setdefault(op.module, []).append(prod(graph.values[op.outputs[0]].shape))
    each = {module: max(1, len(rows) // max(1, calls[module])) for module, rows in shapes.items()}
    return {module: sum(rows[each[module] - 1 :: each[module]]) for module, rows in shapes.items()}


def _around(module: str, dealt: dict[str, int]) -> Iterator[str]:
    """The modules with a routing, those that share most of the path with `module` first."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        within = ".".join(parts[:length])
        yield from (one for one in dealt if one == within or one.startswith(f"{within}."))


def _of(graph: Graph, op: Op) -> float:
    shapes = [graph.values[number].shape for number in op.inputs]
    made = [graph.values[number].shape for number in op.outputs]
    match op.target:
        case "linear" | "matmul" | "aten.mm" | "aten.bmm" | "aten.mv" | "aten.dot" | "aten._grouped_mm":
            return prod(made[0]) * shapes[0][-1]
        case "aten.addmm" | "aten.baddbmm":
            return prod(made[0]) * shapes[1][-1]
        case "attention":
            query, key, value = shapes[:3]
            return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
        case "aten.convolution":
            return prod(made[0]) * prod(shapes[1][1:])
        case "einsum":
            return _einsum(op, shapes)
        case _:
            return 0


def _einsum(op: Op, shapes: list[tuple[int, ...]]) -> float:
    """The product of the sizes of all letters; one operand multiplies nothing."""
    equation = next((one for one in op.args if isinstance(one, str)), "")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) < 2 or len(terms) != len(shapes):
        return 0
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        letters = term.replace("...", "")
        sizes.update(zip(letters, shape[len(shape) - len(letters) :], strict=True))
    return prod(sizes.values())
