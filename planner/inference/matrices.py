"""Large matrices outside of sharded groups: sharded alone, with an all-reduce of lookups or a gathered output."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from math import prod

from shardproof.planner.inference.candidates import locked
from shardproof.planner.inference.groups import Groups
from shardproof.planner.ir.graph import Graph, Module
from shardproof.planner.ir.plan import TpEntry, generic, join
from shardproof.planner.propagation.assign import is_stacked, is_transposed, multiplies

WORTH_SHARE = 0.01
"""A matrix, or a block of matrices together, is worth a collective of its own if it has at least this share of all
parameters.
"""
WORTH_ELEMENTS = 1 << 26
"""A matrix with at least this many elements is worth a collective too."""
FEWEST = 64
"""A matrix with fewer rows or columns than this, and than the sharded groups have parts, stays whole next to larger ones:
sharding it would forbid degrees that they allow."""
ALONE = "embedding_colwise"
"""The style that gathers the output of an `[in, out]` weight or of a stack of matrices; it needs no attribute of the module."""


def large_leftovers(
    groups: Groups, planned: Mapping[str, TpEntry], reasons: Mapping[str, str], *, sizes: Iterable[int], tables: bool
) -> list[list[TpEntry]]:
    """Proposals for modules without an entry whose parameters are worth a collective; tied parameters are in one proposal.

    Args:
        groups: the groups of the graph.
        planned: the entries that there are, by pattern.
        reasons: why a module pattern is not sharded with its group.
        sizes: the numbers of parts of the groups that are sharded.
        tables: whether to propose tables that are looked up by row, or all other matrices.
    """
    graph = groups.graph
    looked_up = {op.inputs[0] for op in graph.ops if op.target.endswith("embedding") and op.inputs}
    total = sum(prod(value.shape) for value in graph.values if value.name is not None)
    matrices = _matrices(graph, planned)
    weights, blocks = _elements(graph, matrices)
    proposals: dict[int, list[TpEntry]] = {}
    for pattern, (module, weight) in matrices.items():
        block = blocks[_block(pattern)]
        tied = weight in looked_up and _times_used(graph, weight) > 1
        alone = weights[pattern] >= WORTH_SHARE * total or prod(graph.values[weight].shape) >= WORTH_ELEMENTS
        many = min(graph.values[weight].shape[-2:]) >= min((FEWEST, *sizes))
        if tied or alone or (many and block >= WORTH_SHARE * total):
            reason = reasons.get(pattern) or locked(groups, module)
            entries = _on_its_own(graph, module, looked_up, weight, reason)
            if entries:
                proposals.setdefault(weight, []).extend([*entries, *_tied_biases(graph, module, weight)])
    return [entries for weight, entries in proposals.items() if (weight in looked_up) == tables]


def _matrices(graph: Graph, planned: Mapping[str, TpEntry]) -> dict[str, tuple[Module, int]]:
    """For every pattern without an entry, the first linear layer or table, with the value number of its matrix."""
    found: dict[str, tuple[Module, int]] = {}
    for module in graph.modules:
        pattern = graph.key(module.path)
        own = [(join(module.path, name), number) for name, number in module.parameters]
        used = [number for name, number in own if generic(name) in graph.used_parameters]
        weights = [number for number in used if len(graph.values[number].shape) in (2, 3)]
        if pattern not in planned and pattern not in found and len(weights) == 1 and _is_known(graph, module):
            found[pattern] = module, weights[0]
    return found


def _is_known(graph: Graph, module: Module) -> bool:
    layers = {"Linear", "Embedding"} & set(module.bases)
    return bool(layers) or is_transposed(graph, module) or is_stacked(graph, module)


def _block(pattern: str) -> str:
    return pattern.rpartition(".")[0]


def _elements(graph: Graph, patterns: Collection[str]) -> tuple[Counter[str], Counter[str]]:
    """The number of elements of all parameters, by pattern and by the block that contains the pattern."""
    weights: Counter[str] = Counter()
    for module in graph.modules:
        if (pattern := graph.key(module.path)) in patterns:
            weights[pattern] += sum(prod(graph.values[number].shape) for _, number in module.parameters)
    blocks: Counter[str] = Counter()
    for pattern, count in weights.items():
        blocks[_block(pattern)] += count
    return weights, blocks


def _tied_biases(graph: Graph, module: Module, weight: int) -> list[TpEntry]:
    """Entries for the other names of a module's tied bias, because one tensor has one placement."""
    biases = {number for _, number in module.parameters if number != weight}
    names = [name for name, number in graph.parameters.items() if number in biases]
    others = [name for name in names if name.rpartition(".")[0] != module.path]
    because = f"another name of the bias of {graph.key(module.path)}"
    return [TpEntry(graph.key(name), "colwise", because, "another name of a split bias") for name in others]


def _times_used(graph: Graph, number: int) -> int:
    return sum(number == own for module in graph.modules for _, own in module.parameters)


def _on_its_own(graph: Graph, module: Module, looked_up: set[int], weight: int, reason: str) -> list[TpEntry]:
    """The entries that shard one matrix and leave its input and output replicated."""
    pattern = graph.key(module.path)
    if "Embedding" in module.bases and weight in looked_up:
        because = "a table looked up by row: a rank holds some rows, and the lookups are summed"
        return [TpEntry(pattern, "embedding_rowwise", because, "table split by rows, lookups summed")]
    shared = [other for other in graph.modules if graph.key(other.path) == pattern and other.kind != module.kind]
    if shared and not is_transposed(graph, module) and multiplies(graph, module):
        # The key matches other modules too: this style needs nothing of them.
        because = f"its rows are split and its output gathered: {reason}"
        return [TpEntry(pattern, "embedding_rowwise", because, _GATHERED)]
    if "Linear" in module.bases and "out_features" in dict(module.numbers):
        because = f"its rows are split and its output gathered, for the output is needed whole: {reason}"
        return [TpEntry(pattern, "colwise_gather_output", because, _GATHERED)]
    if is_stacked(graph, module) and multiplies(graph, module):
        because = f"the rows of each matrix are split and the output gathered, for the output is needed whole: {reason}"
        return [TpEntry(pattern, ALONE, because, _GATHERED)]
    if is_transposed(graph, module) and multiplies(graph, module):
        vectors = [local for local, number in module.parameters if number != weight]
        because = (
            "kept as [in, out], where no style for linear layers can stand: its columns are split, its output gathered"
        )
        return [
            TpEntry(pattern, ALONE, because, _GATHERED),
            *(
                TpEntry(graph.key(join(module.path, local)), "colwise", "as its matrix", "as its matrix")
                for local in vectors
            ),
        ]
    return []


_GATHERED = "split alone, output gathered"
