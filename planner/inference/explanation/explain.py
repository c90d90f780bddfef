"""Explain an inference: its groups with the ops that tie or forbid them, and the parameters that are not sharded."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from shardproof.planner.inference.candidates import PACKED_MOST, blocks_of
from shardproof.planner.inference.groups import Atom, Groups, inner_leaves
from shardproof.planner.inference.tensor import Inference
from shardproof.planner.ir.explanation import Explanation, Group, LeftWhole, Member, Tie
from shardproof.planner.ir.graph import Graph, Op
from shardproof.planner.ir.placement import R, Shard
from shardproof.planner.ir.plan import join
from shardproof.planner.ir.styles import After
from shardproof.planner.propagation.assign import Assigned, assign


def explain(inference: Inference, styles: Mapping[str, str], unplanned: Mapping[str, str], prefix: str) -> Explanation:
    """The groups of a model and the parameters that a plan does not shard; keys of `styles` are relative to the head model."""
    if inference.groups is None:
        return Explanation()
    groups, graph = inference.groups, inference.groups.graph
    assigned = assign(graph, styles, base_prefix=prefix)
    members = _members(groups)
    ties, found = _ties(groups, set(members)), dict[tuple[object, ...], Group]()
    for atom, uses in members.items():
        shown = tuple(dict.fromkeys(Member(graph.key(use.name), use.dim, use.size, use.blocks) for use in uses))
        sharded = any(_is_split(assigned, use) for use in uses)
        if not sharded and min(use.blocks for use in uses) > PACKED_MOST:
            continue
        forbids = tuple(dict.fromkeys(_forbids(graph, atom)))
        reason = "" if sharded or forbids else _reason(inference, assigned, uses)
        found.setdefault((shown, sharded), Group(atom.size, shown, ties.get(atom, ()), forbids, sharded, reason))
    weight = _elements_by_pattern(graph)
    ordered = sorted(found.values(), key=lambda group: -sum(weight[m.parameter] for m in group.members))
    return Explanation(tuple(ordered), left_whole(graph, assigned, unplanned))


@dataclass(frozen=True, slots=True)
class _ParameterUse:
    """A group's dim in one parameter: dim number `dim` with `size` elements, in `blocks` packed blocks."""

    name: str
    dim: int
    size: int
    blocks: int


def _is_split(assigned: Assigned, use: _ParameterUse) -> bool:
    """Whether activations after this parameter are sharded along the group; they are not if the output is gathered."""
    placement, _ = assigned.parameters.get(use.name, (R, ""))
    style = assigned.modules.get(use.name.rpartition(".")[0])
    gathered = style is not None and style[0].after is After.GATHER
    return isinstance(placement, Shard) and (placement.dim, placement.blocks) == (use.dim, use.blocks) and not gathered


def _reason(inference: Inference, assigned: Assigned, uses: list[_ParameterUse]) -> str:
    """The reason why a group that no op forbids is not sharded."""
    if any(isinstance(assigned.parameters.get(use.name, (R,))[0], Shard) for use in uses):
        default = "its parameters are split along another dim"
    else:
        default = "it was not worth a collective"
    assert inference.groups is not None
    owners = (inference.groups.graph.key(use.name.rpartition(".")[0]) for use in uses)
    return next((inference.reasons[owner] for owner in owners if owner in inference.reasons), default)


def _members(groups: Groups) -> dict[Atom, list[_ParameterUse]]:
    """Every atom in a dim of a parameter that the trace uses, with these parameters."""
    graph = groups.graph
    found: dict[Atom, list[_ParameterUse]] = {}
    for module in graph.modules:
        for local, number in module.parameters:
            for position, dim in enumerate(groups.dims.get(number, ())):
                for atom in inner_leaves(dim):
                    blocks = blocks_of(dim, atom) or 1
                    size = graph.values[number].shape[position]
                    found.setdefault(atom, []).append(_ParameterUse(join(module.path, local), position, size, blocks))
    return found


def _ties(groups: Groups, wanted: set[Atom]) -> dict[Atom, tuple[Tie, ...]]:
    """The ops in which an atom is in two or more tensors, in execution order; equal ones once."""
    found: dict[Atom, dict[Tie, None]] = {}
    for op in groups.graph.ops:
        seen: Counter[Atom] = Counter()
        for number in dict.fromkeys((*op.inputs, *op.outputs)):
            seen.update({atom for dim in groups.dims.get(number, ()) for atom in inner_leaves(dim)} & wanted)
        for atom, times in seen.items():
            if times > 1:
                found.setdefault(atom, {})[_tie(groups.graph, op)] = None
    return {atom: tuple(ties) for atom, ties in found.items()}


def _tie(graph: Graph, op: Op, why: str = "") -> Tie:
    return Tie(op.target.rpartition(".")[2], graph.key(op.module), str(op.source or ""), why)


def _forbids(graph: Graph, atom: Atom) -> Iterator[Tie]:
    for lock in atom.locks:
        if lock.position >= 0:
            yield _tie(graph, graph.ops[lock.position], lock.why)
        else:
            yield Tie("output", "", "", lock.why)


def _elements_by_pattern(graph: Graph) -> Counter[str]:
    weight: Counter[str] = Counter()
    for module in graph.modules:
        for local, number in module.parameters:
            weight[graph.key(join(module.path, local))] += prod(graph.values[number].shape)
    return weight


def left_whole(graph: Graph, assigned: Assigned, unplanned: Mapping[str, str]) -> tuple[LeftWhole, ...]:
    """The parameters that a plan does not shard, most elements first; a tied parameter once."""
    elements, size, seen, every = Counter[str](), Counter[str](), set[int](), 0
    counted = set[int]()
    for module in graph.modules:
        for local, number in module.parameters:
            value = graph.values[number]
            held = prod(value.shape) * _BYTES.get(value.dtype, 4)
            every += 0 if number in counted else held
            counted.add(number)
            placement, _ = assigned.parameters.get(join(module.path, local), (R, ""))
            if number in seen or isinstance(placement, Shard):
                continue
            seen.add(number)
            elements[graph.key(module.path)] += prod(value.shape)
            size[graph.key(module.path)] += held
    return tuple(
        LeftWhole(pattern, count, size[pattern], unplanned.get(pattern, _STYLED), size[pattern] / max(every, 1))
        for pattern, count in elements.most_common()
    )


_STYLED = "its module's style keeps it whole (a bias is added once, after the sum)"
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1}
