"""From groups to proposals: the entries that shard one group, found among the styles by what these lay out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from planner.infer.groups import Atom, Dim, Groups, leaves, root, size_of
from planner.ir.graph import Graph, Module, Op
from planner.ir.placement import Placement, R, Shard
from planner.ir.plan import TpEntry, generic, join
from planner.ir.styles import STYLES, After, Before, Style

PACKED_MOST = 3
"""Projections are packed out of up to three parts; a shard of more blocks is a group of no interest (a head's own width)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One group as a proposal: entries (as the head model sees them), how many parts it has, what it would shard."""

    entries: tuple[TpEntry, ...]
    size: int
    parameters: frozenset[str]


class IllegalError(Exception):
    """A group that cannot be sharded; the text is the reason."""


@dataclass(frozen=True)
class _Use:
    """One parameter that a group runs through, and how it would be sharded."""

    name: str
    module: Module
    local: str
    placement: Shard


def find_candidates(groups: Groups, reasons: dict[str, str]) -> list[Candidate]:
    """One candidate a legal group, largest first; for the others, the reason by module pattern."""
    found: list[Candidate] = []
    owners = {name: (module, local) for module in groups.graph.modules for name, local in _own(module)}
    classes = sorted(_classes(groups, owners).items(), key=lambda item: max(use.placement.blocks for use in item[1]))
    for atom, uses in classes:
        try:
            found.append(_candidate(groups.graph, atom, uses))
        except IllegalError as illegal:
            for use in uses:
                if use.placement.blocks <= PACKED_MOST:
                    reasons.setdefault(generic(use.module.path), str(illegal))
    return sorted(found, key=lambda c: -sum(_elements(groups.graph, name) for name in c.parameters))


def _own(module: Module) -> Iterable[tuple[str, str]]:
    return ((join(module.path, local), local) for local, _ in module.parameters)


def _elements(graph: Graph, name: str) -> int:
    return prod(graph.values[graph.parameters[name]].shape)


def _classes(groups: Groups, owners: Mapping[str, tuple[Module, str]]) -> dict[Atom, list[_Use]]:
    """Unlocked atoms that a parameter's shard can follow, with those parameters."""
    found: dict[Atom, list[_Use]] = {}
    for name, (module, local) in owners.items():
        number = groups.graph.parameters[name]
        for position, dim in enumerate(groups.dims.get(number, ())):
            for atom in inner_leaves(dim):
                blocks = _blocks(dim, atom)
                if not atom.locks and blocks is not None:
                    found.setdefault(atom, []).append(_Use(name, module, local, Shard(position, blocks)))
    return found


def inner_leaves(dim: Dim) -> list[Atom]:
    found: dict[Atom, None] = {}
    for atom in leaves(dim):
        if not atom.blocks:
            found[atom] = None
        for block in atom.blocks:
            found |= dict.fromkeys(inner_leaves(block))
    return list(found)


def _blocks(dim: Dim, wanted: Atom) -> int | None:
    """How many packed blocks of `dim` a shard along `wanted` has; None where the blocks are unequal or lack it."""
    before = 1
    for atom in leaves(dim):
        if root(atom) is wanted:
            return before
        if atom.blocks:
            inner = [_blocks(block, wanted) for block in atom.blocks]
            sizes = {size_of(block) // count for block, count in zip(atom.blocks, inner, strict=True) if count}
            if all(inner) and len(sizes) == 1:
                return before * sum(count or 0 for count in inner)
        before *= atom.size
    return None


def _candidate(graph: Graph, atom: Atom, uses: list[_Use]) -> Candidate:
    """The entries that shard one group; `IllegalError` where no styles do."""
    by_module: dict[str, list[_Use]] = {}
    for use in uses:
        by_module.setdefault(use.module.path, []).append(use)
    entries: dict[str, TpEntry] = {}
    summed = {graph.ops[position].module: graph.ops[position] for position in atom.sums}
    for path, own in by_module.items():
        for entry in _entries(graph, own, summed.get(path), atom):
            entries[entry.pattern] = entry
    for path, op in summed.items():
        if path not in by_module:
            raise IllegalError(f"summed over in {path or 'the model'} ({op.source}), where no style can reduce it")
    return Candidate(tuple(entries.values()), atom.size, frozenset(use.name for use in uses))


def _entries(graph: Graph, uses: list[_Use], summed: Op | None, atom: Atom) -> list[TpEntry]:
    module = uses[0].module
    wanted: dict[str, Placement] = {local: R for local, _ in module.parameters}
    for use in uses:
        if wanted[use.local] not in (R, use.placement):
            raise IllegalError(f"{use.name} would be split along two dims at once")
        wanted[use.local] = use.placement
    numbers = dict(module.numbers)
    if not {"out_features", "in_features"} & set(numbers):
        return _raw_entries(graph, uses, summed, atom)
    for style in STYLES.values():
        if _hooks_fit(style, summed) and style.needs in (None, *numbers) and _lays_out(graph, style, module, wanted):
            return [TpEntry(generic(module.path), style.name, _because(graph, uses[0], atom, summed=summed))]
    shown = ", ".join(f"{local} {placement}" for local, placement in wanted.items())
    raise IllegalError(f"no Transformers style lays out {module.path} as {shown}")


def _hooks_fit(style: Style, summed: Op | None) -> bool:
    before = Before.TAKE_REPLICATED if summed is None else Before.TAKE_SHARDED
    after = After.NOTHING if summed is None else After.REDUCE
    return style.before is before and style.after is after


def _lays_out(graph: Graph, style: Style, module: Module, wanted: Mapping[str, Placement]) -> bool:
    return all(
        style.placement(local, len(graph.values[number].shape)) == wanted[local] for local, number in module.parameters
    )


def _raw_entries(graph: Graph, uses: list[_Use], summed: Op | None, atom: Atom) -> list[TpEntry]:
    """Parameters that a module uses by itself, such as stacked experts: a layout each, and the module's hook."""
    module = uses[0].module
    entries = []
    for use in uses:
        ndim = len(graph.values[graph.parameters[use.name]].shape)
        fitting = ("colwise", "packed_colwise", "rowwise", "packed_rowwise")
        style = next((s for s in fitting if STYLES[s].placement(use.local, ndim) == use.placement), None)
        if style is None:
            raise IllegalError(f"no Transformers style lays out {use.name} as {use.placement}")
        contracted = summed if style.endswith("rowwise") else None
        entries.append(TpEntry(generic(use.name), style, _because(graph, use, atom, summed=contracted)))
    if summed is None:
        return [*entries, TpEntry(generic(module.path), "local_params", "uses its own sharded parameters by itself")]
    because = f"its output is a sum over {atom.size} parts ({summed.source}), reduced here"
    return [*entries, TpEntry(generic(module.path), "moe_tp_experts", because)]


def _because(graph: Graph, use: _Use, atom: Atom, *, summed: Op | None) -> str:
    number = graph.parameters[use.name]
    role = "sums over" if summed is not None else "makes"
    op = summed or next((graph.ops[p] for p in graph.users.get(number, ())), None)
    where = f" at {op.source}" if op is not None and op.source else ""
    chain = " -> ".join(_chain(graph, number))
    packed = f", {use.placement.blocks} packed blocks" if use.placement.blocks > 1 else ""
    return f"{role} a dim of {atom.size} independent parts{packed}: {chain}{where}"


def _chain(graph: Graph, number: int) -> list[str]:
    """The ops that a parameter's result runs through first, as a short reason."""
    names: list[str] = []
    while len(names) < 4 and (users := graph.users.get(number)):
        op = graph.ops[users[0]]
        names.append(op.target.rpartition(".")[2])
        if not op.outputs:
            break
        number = op.outputs[0]
    return names
