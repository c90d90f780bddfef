"""Spread a plan over the modules and parameters of a model, the way a client reads its keys."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.ir.graph import Graph, Module
from planner.ir.placement import Placement
from planner.ir.plan import generic, join, owner_of
from planner.ir.styles import STYLES, After, Before, Layout, Style


@dataclass(frozen=True, slots=True)
class Assigned:
    """The style and entry of every planned module, the placement and entry of every planned parameter."""

    modules: Mapping[str, tuple[Style, str]]
    parameters: Mapping[str, tuple[Placement, str]]


def assign(graph: Graph, styles: Mapping[str, str], *, base_prefix: str = "") -> Assigned:
    """Spread `styles` (keys as the head model sees them) as Transformers 5.23 does (`distributed/mixin.py`).

    Layer numbers match `*`; then the key is looked up exactly; a parameter falls back to its own module only; a model's
    child called `embed_tokens` is split over the vocabulary by itself, where that model has any entry. Unknown styles are left
    out: the plan check reports them.
    """
    tables = _tables(graph, base_prefix)
    planned = {owner_of(key, ("", *tables)) for key in styles}
    split = [table for model, table in tables.items() if model in planned and table]
    styles = {**dict.fromkeys(split, "embedding_rowwise"), **styles}
    modules: dict[str, tuple[Style, str]] = {}
    parameters: dict[str, tuple[Placement, str]] = {}
    standing: dict[str, Style] = {}
    for module in graph.modules:
        key = generic(module.path)
        if (name := styles.get(key)) is not None and name in STYLES:
            # A repeated layer has no ops of its own: the first of its kind stands for it.
            if key not in standing:
                standing[key] = _standing_on(graph, module, STYLES[name])
            modules[module.path] = (standing[key], key)
        for local, number in module.parameters:
            name = join(module.path, local)
            entry = next((k for k in (generic(name), key) if k in styles), None)
            if entry is not None and styles[entry] in STYLES:
                placement = STYLES[styles[entry]].placement(local, len(graph.values[number].shape))
                parameters[name] = (placement, entry)
    return Assigned(modules, parameters)


def _standing_on(graph: Graph, module: Module, style: Style) -> Style:
    """What a style is on this module. One for tables, on a module that multiplies by a matrix: input and parameters become
    distributed tensors there. A matrix split along its output features makes a shard, which is gathered; one split along its
    input features takes its part of the input, and the sum is reduced (`EmbeddingParallel` in transformers 5.23.0,
    distributed/tensor_parallel.py).
    """
    if not is_for_tables(style) or "Embedding" in module.bases or not multiplies(graph, module):
        return style
    outputs = Layout.SECOND if is_transposed(graph, module) else Layout.FIRST
    if style.layout is outputs:
        return replace(style, before=Before.TAKE_REPLICATED, after=After.GATHER)
    return replace(style, before=Before.SPLIT, after=After.REDUCE)


def is_for_tables(style: Style) -> bool:
    """Whether a style is one of those for lookups."""
    return style.layout in (Layout.FIRST, Layout.SECOND) and not style.expert_parallel


def multiplies(graph: Graph, module: Module) -> bool:
    """Whether all that a module does is to multiply its first argument by its one matrix, adding a vector perhaps."""
    matrix = _matrix(graph, module)
    ops = [op for op in graph.ops if op.module == module.path]
    given = {call.arguments[0][1] for call in graph.calls if call.module == module.path and call.arguments}
    known = given | {number for _, number in module.parameters} | {made for op in ops for made in op.outputs}
    return (
        matrix is not None
        and sum(op.target in _PRODUCTS and matrix in op.inputs for op in ops) == len(graph.users.get(matrix, ())) == 1
        and all(op.target in (*_PRODUCTS, "aten.view", "aten.add") and known.issuperset(op.inputs) for op in ops)
    )


def is_transposed(graph: Graph, module: Module) -> bool:
    """Whether a module's one matrix is kept as `[in, out]`: multiplied from the right, as it is."""
    matrix = _matrix(graph, module)
    ops = [graph.ops[position] for position in graph.users.get(matrix, ())] if matrix is not None else []
    return bool(ops) and all(op.target in _PRODUCTS[1:] and op.inputs[-1] == matrix for op in ops)


_PRODUCTS = ("linear", "aten.addmm", "aten.mm", "matmul")


def _matrix(graph: Graph, module: Module) -> int | None:
    matrices = [number for _, number in module.parameters if len(graph.values[number].shape) == 2]
    return matrices[0] if len(matrices) == 1 else None


def automatic(graph: Graph, base_prefix: str) -> list[str]:
    """Patterns of the embeddings that get a style without an entry: `embed_tokens` of every model but the head."""
    return [table for table in _tables(graph, base_prefix).values() if table]


def _tables(graph: Graph, base_prefix: str) -> dict[str, str]:
    """Every model but the head with the pattern of its embedding; an empty one where it has none."""
    found = {}
    for module in graph.modules:
        if "PreTrainedModel" in module.bases and (module.path or not base_prefix):
            embedding = graph.module_of.get(join(module.path, "embed_tokens"))
            is_table = embedding is not None and "Embedding" in embedding.bases
            found[generic(module.path)] = generic(embedding.path) if embedding is not None and is_table else ""
    return found
