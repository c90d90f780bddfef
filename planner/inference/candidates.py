"""From groups to proposals: the entries that shard one group, found by the placements that each style gives."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import prod

from shardproof.planner.inference.groups import Atom, Dim, Groups, leaves, root, size_of
from shardproof.planner.ir.graph import Graph, Module, Op
from shardproof.planner.ir.placement import Placement, R, Shard
from shardproof.planner.ir.plan import TpEntry, generic, join
from shardproof.planner.ir.styles import STYLES, After, Before, Style, packed_name, style_of

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


class IllegalError(Exception):
    """A group that cannot be sharded; the text is the reason."""


@dataclass(frozen=True)
class _GroupUse:
    """One parameter with a dim of the group, and its placement if the group is sharded."""

    name: str
    module: Module
    local: str
    placement: Shard


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


def _classes(groups: Groups, owners: Mapping[str, tuple[Module, str]]) -> dict[Atom, list[_GroupUse]]:
    """The atoms that are not locked and along which parameters can be sharded, with these parameters."""
    found: dict[Atom, list[_GroupUse]] = {}
    for name, (module, local) in owners.items():
        if generic(name) not in groups.graph.used_parameters:
            continue
        number = groups.graph.parameters[name]
        for position, dim in enumerate(groups.dims.get(number, ())):
            for atom in inner_leaves(dim):
                blocks = blocks_of(dim, atom)
                if not atom.locks and blocks is not None:
                    found.setdefault(atom, []).append(_GroupUse(name, module, local, Shard(position, blocks)))
    return found


def inner_leaves(dim: Dim) -> list[Atom]:
    found: dict[Atom, None] = {}
    for atom in leaves(dim):
        if not atom.blocks:
            found[atom] = None
        for block in atom.blocks:
            found |= dict.fromkeys(inner_leaves(block))
    return list(found)


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


def _candidate(groups: Groups, atom: Atom, uses: list[_GroupUse]) -> Candidate:
    """The entries that shard one group.

    First each module gets a style of its own, whose input and output placements fit its neighbours. If one module has no
    such style, the closest module around the whole group is tried: the modules inside run on local parameters, and one
    all-reduce sums the output of the outer module.

    Raises:
        IllegalError: no styles shard the group.
    """
    _read_by_owners(groups.graph, uses)
    members = _members(groups.graph, atom, uses)
    try:
        entries = _closed_one_by_one(groups, atom, members)
    except _OpenError as illegal:
        entries = _closed_together(groups, atom, members) or _refuse(illegal)
    by_pattern: dict[str, TpEntry] = {}
    for entry in entries:
        if (other := by_pattern.setdefault(entry.pattern, entry)).style != entry.style:
            why = f"{entry.pattern} stands for modules that need {other.style} and {entry.style}"
            raise IllegalError(f"{why}: a key has no way to tell numbered modules apart")
    return Candidate(tuple(by_pattern.values()), atom.size, frozenset(use.name for use in uses), atom)


class _OpenError(IllegalError):
    """A module for which no style of its own fits; a style on a module around it may."""


def _refuse(illegal: IllegalError) -> list[TpEntry]:
    raise IllegalError(str(illegal))


@dataclass(frozen=True)
class _Member:
    """One module of a group: its parameters in the group, and the op in which it contracts the group's dim, if any."""

    module: Module
    uses: tuple[_GroupUse, ...]
    summed: Op | None


def _members(graph: Graph, atom: Atom, uses: list[_GroupUse]) -> list[_Member]:
    by_module: dict[str, list[_GroupUse]] = {}
    for use in uses:
        by_module.setdefault(use.module.path, []).append(use)
    summed = {graph.ops[position].module: graph.ops[position] for position in atom.sums}
    return [
        _Member(graph.module_of[path], tuple(by_module.get(path, ())), summed.get(path))
        for path in dict.fromkeys((*by_module, *summed))
    ]


def _read_by_owners(graph: Graph, uses: Sequence[_GroupUse]) -> None:
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


def _closed_one_by_one(groups: Groups, atom: Atom, members: list[_Member]) -> list[TpEntry]:
    entries: list[TpEntry] = []
    for member in members:
        if not member.uses and member.summed is not None:
            where = f"{member.module.path or 'the model'} ({member.summed.source})"
            raise _OpenError(f"summed over in {where}, where no style can reduce it")
        if is_linear(member.module):
            entries.append(_linear_entry(groups.graph, atom, member))
        else:
            hook = _raw_hook(groups, atom, member)
            entries += [*_layouts(groups.graph, atom, member), hook]
            entries += _identities(groups.graph, member.module) if hook.style == "moe_tp_experts" else []
    return entries


def is_linear(module: Module) -> bool:
    """Whether a module has the attributes that the styles of linear layers need."""
    return bool({"out_features", "in_features"} & {name for name, _ in module.numbers})


def _linear_entry(graph: Graph, atom: Atom, member: _Member) -> TpEntry:
    module, numbers = member.module, dict(member.module.numbers)
    wanted = _wanted(member)
    for style in _styles_for(graph, member):
        if (
            _hooks_fit(style, member.summed)
            and style.needs in (None, *numbers)
            and _lays_out(graph, style, module, wanted)
        ):
            use, summed = member.uses[0], member.summed
            because = _because(graph, use, atom, summed=summed)
            return TpEntry(graph.key(module.path), style.name, because, _brief(use, atom, summed=summed))
    shown = ", ".join(f"{local} {placement}" for local, placement in wanted.items())
    raise IllegalError(f"no Transformers style lays out {module.path} as {shown}")


def _styles_for(graph: Graph, member: _Member) -> list[Style]:
    """The styles to choose from: of a module that is no Transformers model, also those of as many packed blocks as there are."""
    blocks = max((use.placement.blocks for use in member.uses), default=1)
    if not graph.any_module or blocks == 1:
        return list(STYLES.values())
    named = style_of(packed_name("colwise" if member.summed is None else "rowwise", (1,) * blocks))
    return [*STYLES.values(), *([named] if named is not None else [])]


def _wanted(member: _Member) -> dict[str, Placement]:
    wanted: dict[str, Placement] = {local: R for local, _ in member.module.parameters}
    for use in member.uses:
        if wanted[use.local] not in (R, use.placement):
            raise IllegalError(f"{use.name} would be split along two dims at once")
        wanted[use.local] = use.placement
    return wanted


def _hooks_fit(style: Style, summed: Op | None) -> bool:
    before = Before.TAKE_REPLICATED if summed is None else Before.TAKE_SHARDED
    after = After.NOTHING if summed is None else After.REDUCE
    return style.before is before and style.after is after


def _lays_out(graph: Graph, style: Style, module: Module, wanted: Mapping[str, Placement]) -> bool:
    return all(
        style.placement(local, len(graph.values[number].shape)) == wanted[local] for local, number in module.parameters
    )


def _layouts(graph: Graph, atom: Atom, member: _Member) -> list[TpEntry]:
    """One entry per parameter, for a module that uses its parameters without a linear layer, such as stacked experts."""
    _wanted(member)
    entries = []
    for use in member.uses:
        ndim = len(graph.values[graph.parameters[use.name]].shape)
        style = next((s for s in _LAYOUTS if STYLES[s].placement(use.local, ndim) == use.placement), None)
        if style is None:
            raise IllegalError(f"no Transformers style lays out {use.name} as {use.placement}")
        contracted = member.summed if use.placement.dim == ndim - 1 and ndim > 1 else None
        because = _because(graph, use, atom, summed=contracted)
        entries.append(TpEntry(graph.key(use.name), style, because, _brief(use, atom, summed=contracted)))
    return entries


_LAYOUTS = ("colwise", "packed_colwise", "rowwise", "packed_rowwise", "embedding_rowwise", "embedding_colwise")
"""Styles that can shard a single parameter; of the last two only the placement applies, not the lookup."""


def _raw_hook(groups: Groups, atom: Atom, member: _Member) -> TpEntry:
    """The entry for a module that uses its own parameters, by the placements of its input and output.

    `moe_tp_experts` takes a replicated input and all-reduces the output; `packed_colwise` takes a replicated input and
    gives a shard; `local_params` takes and gives a shard. No style takes a shard and all-reduces.
    """
    pattern = groups.graph.key(member.module.path)
    if member.summed is None:
        if _meets_whole_input(groups, atom, member.module):
            because = "whole values meet its own sharded parameters here"
            return TpEntry(pattern, "packed_colwise", because, because)
        because = "uses its own sharded parameters by itself"
        return TpEntry(pattern, "local_params", because, because)
    if any(_carries(groups, number, atom) for number in _arguments(groups.graph, member.module)):
        raise _OpenError(
            f"{member.module.path} takes a shard and sums over it ({member.summed.source}): only a linear layer with "
            "`in_features` has a style for that (rowwise)"
        )
    return _summed_here(pattern, atom, member.summed)


def _identities(graph: Graph, module: Module) -> list[TpEntry]:
    """Entries for identity modules inside a module whose output is all-reduced: each rank adds its share of the value."""
    inside = {call.module for call in graph.calls if call.module.startswith(f"{module.path}.")}
    passing = dict.fromkeys(graph.key(path) for path in sorted(inside) if "Identity" in graph.module_of[path].bases)
    return [
        TpEntry(
            pattern,
            "moe_identity_expert",
            f"whole on every rank, and part of the sum over {graph.key(module.path)}",
            "whole on every rank, part of the sum",
        )
        for pattern in passing
    ]


def _summed_here(pattern: str, atom: Atom, summed: Op) -> TpEntry:
    """The entry of a module whose output is all-reduced."""
    because = f"its output is a sum over {atom.size} parts ({summed.source}), reduced here"
    return TpEntry(pattern, "moe_tp_experts", because, f"sums over the {atom.size} parts")


def _closed_together(groups: Groups, atom: Atom, members: list[_Member]) -> list[TpEntry]:
    """Entries that all-reduce the output of the closest module around all members; empty if that is not possible."""
    path = _around([member.module.path for member in members])
    around = groups.graph.module_of.get(path)
    summed = next((member.summed for member in members if member.summed is not None), None)
    call = next((call for call in groups.graph.calls if call.module == path), None)
    if (
        not path
        or around is None
        or call is None
        or summed is None
        or path in {m.module.path for m in members if m.uses}
    ):
        return []
    if len(call.outputs) != 1 or any(
        _carries(groups, n, atom) for n in (*_arguments(groups.graph, around), *call.outputs)
    ):
        return []
    entries: list[TpEntry] = []
    for member in members:
        if member.uses:
            entries += _layouts(groups.graph, atom, member)
            inside = f"runs on its own part; the sum is taken in {groups.graph.key(path)}"
            entries.append(
                TpEntry(groups.graph.key(member.module.path), "local_params", inside, "runs on its own part")
            )
    return [*entries, _summed_here(groups.graph.key(path), atom, summed)]


def _around(paths: list[str]) -> str:
    """The path of the closest module that contains all of these modules."""
    parts = [path.split(".") for path in paths]
    common = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return ".".join(column[0] for column in common)


def _arguments(graph: Graph, module: Module) -> list[int]:
    return [number for call in graph.calls if call.module == module.path for _, number in call.arguments]


def _carries(groups: Groups, number: int, atom: Atom) -> bool:
    return any(atom in inner_leaves(dim) for dim in groups.dims.get(number, ()))


def _meets_whole_input(groups: Groups, atom: Atom, module: Module) -> bool:
    """Whether the module's first argument, still without the group's dim, reaches an op of the module whose result has that
    dim.
    """
    graph = groups.graph
    calls = [call for call in graph.calls if call.module == module.path and call.arguments]
    reached = {call.arguments[0][1] for call in calls if not _carries(groups, call.arguments[0][1], atom)}
    for op in graph.ops:
        if op.module == module.path and reached.intersection(op.inputs):
            if any(_carries(groups, number, atom) for number in op.outputs):
                return True
            reached.update(op.outputs)
    return False


def _because(graph: Graph, use: _GroupUse, atom: Atom, *, summed: Op | None) -> str:
    number = graph.parameters[use.name]
    role = "sums over" if summed is not None else "makes"
    op = summed or next((graph.ops[p] for p in graph.users.get(number, ())), None)
    where = f" at {op.source}" if op is not None and op.source else ""
    chain = " -> ".join(_chain(graph, number))
    packed = f", {use.placement.blocks} packed blocks" if use.placement.blocks > 1 else ""
    return f"{role} a dim of {atom.size} independent parts{packed}: {chain}{where}"


def _brief(use: _GroupUse, atom: Atom, *, summed: Op | None) -> str:
    """`_because` in a few words, without the line of the source."""
    packed = f" in {use.placement.blocks} packed blocks" if use.placement.blocks > 1 else ""
    return f"{'sums over the' if summed is not None else 'output splits into'} {atom.size} parts{packed}"


def _chain(graph: Graph, number: int) -> list[str]:
    """The first ops that use a parameter or its result, as a short reason."""
    names: list[str] = []
    while len(names) < 4 and (users := graph.users.get(number)):
        op = graph.ops[users[0]]
        names.append(op.target.rpartition(".")[2])
        if not op.outputs:
            break
        number = op.outputs[0]
    return names


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
