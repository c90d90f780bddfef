"""Small changes of the modeling code that would allow more sharding. A changed view is tried before it is offered."""

from collections.abc import Mapping

from shardproof.planner.inference.candidates import Candidate
from shardproof.planner.inference.explanation.source_edits import as_linear, unfix_views
from shardproof.planner.inference.group_entries import is_linear
from shardproof.planner.inference.groups import Groups, inner_leaves
from shardproof.planner.inference.matrices import ALONE
from shardproof.planner.inference.probe import prober
from shardproof.planner.inference.tensor import Inference, probe_degree
from shardproof.planner.ir.explanation import Patch
from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.graph import Graph, Module
from shardproof.planner.propagation.assign import is_transposed
from shardproof.planner.propagation.rules.registry import semantics
from shardproof.planner.propagation.semantics import Call, Reshape
from shardproof.planner.tracing.programs import Subject


def find_patches(subject: Subject, inference: Inference) -> tuple[Patch, ...]:
    """The changes that would allow more sharding, each once."""
    found = [_open_views(subject, inference, candidate) for candidate in inference.refused]
    seen: set[str] = set()
    for module in subject.graph.modules:
        pattern = subject.graph.key(module.path)
        if pattern not in seen and _is_apart(subject.graph, inference, module):
            seen.add(pattern)
            found.append(_transposed(subject, module))
    return tuple(dict.fromkeys(patch for patch in found if patch is not None))


def _open_views(subject: Subject, inference: Inference, candidate: Candidate) -> Patch | None:
    """A change that replaces the size of a refused group's dim in its views by -1, if the group is right with it."""
    if inference.groups is None:
        return None
    views = _views(inference.groups, candidate)
    styles = {entry.pattern: entry.style for entry in (*inference.entries.values(), *candidate.entries)}
    degree = probe_degree([candidate.size, *inference.sizes])
    if not views or not prober(subject, unfixed=views)(styles, degree).right:
        return None
    needed = _needed(subject, views, styles, degree)
    diff = unfix_views(needed)
    if not diff:
        return None
    unlocks = tuple(sorted({subject.graph.key(name.rpartition(".")[0]) for name in candidate.parameters}))
    return Patch("Leave the number of parts to the tensor.", unlocks, diff, tried=True)


def _views(groups: Groups, candidate: Candidate) -> dict[Source, int]:
    """The source lines with views that create the group's dim; the value is the dim, counted from the end."""
    graph = groups.graph
    found: dict[Source, int] = {}
    for op in graph.ops:
        if op.source is None or not isinstance(semantics(Call(graph, op)), Reshape):
            continue
        dims = groups.dims.get(op.outputs[0], ())
        at = [position for position, dim in enumerate(dims) if candidate.atom in inner_leaves(dim)]
        if len(at) == 1:
            found.setdefault(op.source, at[0] - len(dims))
    return found


def _needed(subject: Subject, views: Mapping[Source, int], styles: Mapping[str, str], degree: int) -> dict[Source, int]:
    """The views that have to change: without any one of them, the group is still refused."""
    needed = dict(views)
    for source in views:
        fewer = {other: dim for other, dim in needed.items() if other != source}
        if prober(subject, unfixed=fewer)(styles, degree).right:
            needed = fewer
    return needed


def _is_apart(graph: Graph, inference: Inference, module: Module) -> bool:
    """Whether a module has an `[in, out]` weight, which no style for linear layers fits, and is not sharded with its group."""
    pattern = graph.key(module.path)
    entry = inference.entries.get(pattern)
    alone = pattern in inference.unplanned or (entry is not None and entry.style == ALONE)
    return alone and not is_linear(module) and len(module.parameters) <= 2 and is_transposed(graph, module)


def _transposed(subject: Subject, module: Module) -> Patch | None:
    owner, _, child = module.path.rpartition(".")
    diff = as_linear(subject.model.get_submodule(owner), child)
    if not diff:
        return None
    title = "Make it an nn.Linear, which the styles ask for, and transpose its weight in checkpoints."
    return Patch(title, (subject.graph.key(module.path),), diff, tried=False)
