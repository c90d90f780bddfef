"""Assign the entries of a plan to the modules and parameters of a model, as a client matches its keys."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

from shardproof.planner.ir.graph import Graph, Module
from shardproof.planner.ir.placement import Placement, R, Shard
from shardproof.planner.ir.plan import generic, join
from shardproof.planner.ir.styles import After, Before, ParameterLayout, Style, style_of
from shardproof.planner.propagation.rules.registry import semantics
from shardproof.planner.propagation.semantics import Call, Einsum
from shardproof.planner.transformers_facts.composed_plan import TABLE, PlanReader, composed, key_of_table


@dataclass(frozen=True, slots=True)
class Assigned:
    """The style and entry of every planned module, and the placement and entry of every planned parameter."""

    modules: Mapping[str, tuple[Style, str]]
    parameters: Mapping[str, tuple[Placement, str]]


def assign(graph: Graph, styles: Mapping[str, str], *, base_prefix: str = "") -> Assigned:
    """Assign `styles` (keys relative to the head model) as Transformers does (`distributed/mixin.py`).

    Layer numbers match `*`; otherwise a key is matched exactly. A parameter without a key takes that of its own module, and
    of no other. Some versions shard a child called `embed_tokens` without an entry, if its model has any entry.
    Unknown styles are ignored here; the check of the plan's form reports them.
    """
    styles = composed(styles, _readers(graph, base_prefix), base_prefix)
    modules: dict[str, tuple[Style, str]] = {}
    parameters: dict[str, tuple[Placement, str]] = {}
    standing: dict[tuple[str, ...], Style] = {}
    for module in graph.modules:
        key = graph.key(module.path)
        if (name := styles.get(key)) is not None and style_of(name) is not None:
            # A repeated layer has no ops of its own in the graph: the first layer of its kind stands for it.
            kind = (key, module.kind, module.path.rpartition(".")[2])
            if kind not in standing:
                standing[kind] = _standing_on(graph, module, styles)
            modules[module.path] = (standing[kind], key)
        for local, number in module.parameters:
            if placed := _placed(graph, module, local, number, styles):
                parameters[join(module.path, local)] = placed
    return Assigned(modules, parameters)


def sharded_share(graph: Graph, assigned: Assigned, *, also: Callable[[str], bool] = lambda _: False) -> float:
    """The share of parameter bytes that is sharded, 0 to 1; a tied parameter counts once. Parameters of modules for which
    `also` is true count as sharded too: a client shards them without an entry.
    """
    sharded, total = 0, 0
    seen: set[int] = set()
    for module in graph.modules:
        for local, number in module.parameters:
            if number in seen:
                continue
            seen.add(number)
            elements = prod(graph.values[number].shape)
            total += elements
            placement, _ = assigned.parameters.get(join(module.path, local), (R, ""))
            sharded += elements if isinstance(placement, Shard) or also(module.path) else 0
    return sharded / total if total else 0.0


def _placed(
    graph: Graph, module: Module, local: str, number: int, styles: Mapping[str, str]
) -> tuple[Placement, str] | None:
    """The placement of a parameter and the key that gives it: its own key, else its module's. None without a key."""
    entry = next((key for key in map(graph.key, (join(module.path, local), module.path)) if key in styles), None)
    style = style_of(styles[entry]) if entry is not None else None
    if entry is None or style is None:
        return None
    return style.placement(local, len(graph.values[number].shape)), entry


def _standing_on(graph: Graph, module: Module, styles: Mapping[str, str]) -> Style:
    """The style that acts on this module. A style for embeddings makes the input and the parameters distributed tensors, so
    on other modules it acts as another style. On a matrix product with output features sharded, the result is a shard that
    is gathered. With input features sharded, each rank takes its part of the input and the result is all-reduced. A
    pointwise module without parameters keeps replicated values (`EmbeddingParallel` in transformers 5.23.0,
    distributed/tensor_parallel.py).
    """
    style = style_of(styles[graph.key(module.path)])
    assert style is not None, "it was looked up before"
    if not looks_up(style) or "Embedding" in module.bases:
        return style
    if _is_pointwise(graph, module):
        return replace(style, before=Before.NOTHING, after=After.NOTHING)
    if not multiplies(graph, module):
        return style
    if gathers := style.layout is (
        ParameterLayout.SECOND if is_transposed(graph, module) or is_stacked(graph, module) else ParameterLayout.FIRST
    ):
        found = replace(style, before=Before.TAKE_REPLICATED, after=After.GATHER)
    else:
        found = replace(style, before=Before.SPLIT, after=After.REDUCE)
    # If the bias has another placement than the product, the client redistributes it; that is not modelled.
    across = R if gathers else Shard(0)
    vectors = [(local, number) for local, number in module.parameters if len(graph.values[number].shape) == 1]
    placed = [_placed(graph, module, local, number, styles) for local, number in vectors]
    return style if any(each is not None and each[0] == across for each in placed) else found


def looks_up(style: Style) -> bool:
    """Whether a style is one for embeddings, acting on a lookup."""
    return style.before is Before.TAKE_IDS or (
        style.layout is ParameterLayout.SECOND and style.before is Before.NOTHING
    )


def _is_pointwise(graph: Graph, module: Module) -> bool:
    """Whether a module has no parameters and computes each element of its result from one element of its first argument."""
    ops = [op for op in graph.ops if op.module == module.path]
    given = {call.arguments[0][1] for call in graph.calls if call.module == module.path and call.arguments}
    known = given | {made for op in ops for made in op.outputs}
    shapes = {graph.values[number].shape for op in ops for number in (*op.inputs, *op.outputs)}
    one_to_one = all(isinstance(semantics(Call(graph, op)), Einsum) for op in ops) and len(shapes) == 1
    return not module.parameters and one_to_one and all(known.issuperset(op.inputs) for op in ops)


def multiplies(graph: Graph, module: Module) -> bool:
    """Whether a module only multiplies its first argument by its one matrix, or parts of it by the matrices of a stack, and
    at most adds a bias.
    """
    matrix = _matrix(graph, module)
    ops = [op for op in graph.ops if op.module == module.path]
    given = {call.arguments[0][1] for call in graph.calls if call.module == module.path and call.arguments}
    known = given | {number for _, number in module.parameters} | {made for op in ops for made in op.outputs}
    return (
        matrix is not None
        and any(op.target in _PRODUCTS for op in ops)
        and all(graph.ops[position].module == module.path for position in graph.users.get(matrix, ()))
        and all(op.target in (*_PRODUCTS, *_AROUND) and known.issuperset(op.inputs) for op in ops)
    )


def is_transposed(graph: Graph, module: Module) -> bool:
    """Whether a module's one matrix has the shape `[in, out]`, and is the right operand of the product without a transpose."""
    matrix = _matrix(graph, module)
    ops = [graph.ops[position] for position in graph.users.get(matrix, ())] if matrix is not None else []
    return bool(ops) and all(op.target in _PRODUCTS[1:] and op.inputs[-1] == matrix for op in ops)


def is_stacked(graph: Graph, module: Module) -> bool:
    """Whether a module's one parameter is a stack of matrices `[out, in]` that are multiplied separately."""
    stack = _matrix(graph, module)
    if stack is None or len(graph.values[stack].shape) != 3 or len(module.parameters) > 1:
        return False
    taken = [graph.ops[position] for position in graph.users.get(stack, ())]
    of_one = {position for op in taken for position in graph.users.get(op.outputs[0], ())}
    return all(op.target == "aten.select" and op.args[1] == 0 for op in taken) and all(
        graph.ops[position].target == "linear" for position in of_one
    )


_PRODUCTS = ("linear", "aten.addmm", "aten.mm", "matmul")
_AROUND = ("aten.view", "aten.add", "aten.select", "aten.split", "aten.split_with_sizes", "aten.cat")


def _matrix(graph: Graph, module: Module) -> int | None:
    matrices = [number for _, number in module.parameters if len(graph.values[number].shape) in (2, 3)]
    return matrices[0] if len(matrices) == 1 else None


def automatic(graph: Graph, base_prefix: str) -> dict[str, str]:
    """Patterns of the embeddings that get a style without an entry -> the key under which an entry is heard."""
    readers = _readers(graph, base_prefix)
    return {join(reader.path, TABLE): key_of_table(reader, base_prefix) for reader in readers if reader.table}


def _readers(graph: Graph, base_prefix: str) -> list[PlanReader]:
    """Every model except the head model, with what the library does to its table."""
    found: dict[str, PlanReader] = {}
    for module in graph.modules:
        if "PreTrainedModel" in module.bases and (module.path or not base_prefix):
            table = graph.module_of.get(join(module.path, TABLE))
            path = generic(module.path)
            found[path] = PlanReader(path, table.automatic if table is not None else "", module.inner)
    return list(found.values())
