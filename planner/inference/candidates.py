"""From groups to proposals: the entries that shard one group, found by the placements that each style gives."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from shardproof.planner.inference.group_entries import (
    GroupUse,
    IllegalError,
    OpenError,
    closed_one_by_one,
    closed_together,
    members_of,
)
from shardproof.planner.inference.groups import Atom, Dim, Groups, inner_leaves, leaves, root, size_of
from shardproof.planner.ir.graph import Graph, Module
from shardproof.planner.ir.placement import Shard
from shardproof.planner.ir.plan import TpEntry, generic, join

PACKED_MOST = 3
"""The most packed blocks of a projection (query, key and value). A group with more blocks, such as a head dim, is not
sharded.
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposal to shard one group: its entries (keys relative to the head model), its number of parts, the parameters
    sharded.
    """

    entries: tuple[TpEntry, ...]
    size: int
    parameters: frozenset[str]
    atom: Atom


def find_candidates(groups: Groups, reasons: dict[str, str]) -> list[Candidate]:
    """One candidate for each legal group, the largest first. For the other groups, `reasons` gets the reason by module
    pattern.
    """
    found: list[Candidate] = []
    owners = {name: (module, local) for module in groups.graph.modules for name, local in _own(module)}
    classes = sorted(_classes(groups, owners).items(), key=lambda item: max(use.placement.blocks for use in item[1]))
    for atom, uses in classes:
        try:
            found.append(_candidate(groups, atom, uses))
        except IllegalError as illegal:
            for use in uses:
                if use.placement.blocks <= PACKED_MOST:
                    reasons.setdefault(groups.graph.key(use.module.path), str(illegal))
    return sorted(found, key=lambda c: -sum(_elements(groups.graph, name) for name in c.parameters))


def _own(module: Module) -> Iterable[tuple[str, str]]:
    return ((join(module.path, local), local) for local, _ in module.parameters)


def _elements(graph: Graph, name: str) -> int:
    return prod(graph.values[graph.parameters[name]].shape)


def _classes(groups: Groups, owners: Mapping[str, tuple[Module, str]]) -> dict[Atom, list[GroupUse]]:
    """The atoms that are not locked and along which parameters can be sharded, with these parameters."""
    found: dict[Atom, list[GroupUse]] = {}
    for name, (module, local) in owners.items():
        if generic(name) not in groups.graph.used_parameters:
            continue
        number = groups.graph.parameters[name]
        for position, dim in enumerate(groups.dims.get(number, ())):
            for atom in inner_leaves(dim):
                blocks = blocks_of(dim, atom)
                if not atom.locks and blocks is not None:
                    found.setdefault(atom, []).append(GroupUse(name, module, local, Shard(position, blocks)))
    return found


def blocks_of(dim: Dim, wanted: Atom) -> int | None:
    """The number of packed blocks that `dim` has if it is sharded along `wanted`; None if blocks are unequal or one lacks
    the atom.
    """
    before = 1
    for atom in leaves(dim):
        if root(atom) is wanted:
            return before
        if atom.blocks:
            inner = [blocks_of(block, wanted) for block in atom.blocks]
            sizes = {size_of(block) // count for block, count in zip(atom.blocks, inner, strict=True) if count}
            if all(inner) and len(sizes) == 1:
                return before * sum(count or 0 for count in inner)
        before *= atom.size
    return None


def _candidate(groups: Groups, atom: Atom, uses: list[GroupUse]) -> Candidate:
    """The entries that shard one group.

    First each module gets a style of its own, whose input and output placements fit its neighbours. If one module has no
    such style, the closest module around the whole group is tried: the modules inside run on local parameters, and one
    all-reduce sums the output of the outer module.

    Raises:
        IllegalError: no styles shard the group.
    """
    _read_by_owners(groups.graph, uses)
    members = members_of(groups.graph, atom, uses)
    try:
        entries = closed_one_by_one(groups, atom, members)
    except OpenError as illegal:
        entries = closed_together(groups, atom, members) or _refuse(illegal)
    by_pattern: dict[str, TpEntry] = {}
    for entry in entries:
        if (other := by_pattern.setdefault(entry.pattern, entry)).style != entry.style:
            why = f"{entry.pattern} stands for modules that need {other.style} and {entry.style}"
            raise IllegalError(f"{why}: a key has no way to tell numbered modules apart")
    return Candidate(tuple(by_pattern.values()), atom.size, frozenset(use.name for use in uses), atom)


def _refuse(illegal: IllegalError) -> list[TpEntry]:
    raise IllegalError(str(illegal))


def _read_by_owners(graph: Graph, uses: Sequence[GroupUse]) -> None:
    """Check that no other module reads the parameters: a style makes a parameter local only while its own module runs."""
    owners: dict[int, set[str]] = {}
    for module in graph.modules:
        for _, number in module.parameters:
            owners.setdefault(number, set()).add(module.path)
    for use in uses:
        number = graph.parameters[use.name]
        for position in graph.users.get(number, ()):
            op = graph.ops[position]
            if op.module not in owners[number]:
                where = f"{op.module or 'the model'} ({op.source})"
                raise IllegalError(f"{use.name} is read by {where}, and no style shards what another module reads")


def locked(groups: Groups, module: Module) -> str:
    """The reason why a module's parameters cannot be sharded."""
    if all(generic(join(module.path, name)) not in groups.graph.used_parameters for name, _ in module.parameters):
        return "it took part in no traced op: nothing is known of it"
    for _, number in module.parameters:
        for dim in groups.dims.get(number, ()):
            for atom in inner_leaves(dim):
                if atom.locks:
                    lock = next(iter(atom.locks))
                    where = f" ({groups.graph.ops[lock.position].source})" if lock.position >= 0 else ""
                    return f"{lock.why}{where}"
    return "too small for a collective of its own"
