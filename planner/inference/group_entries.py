"""The entries that shard one group of dims: of each of its modules, the style that lays it out so."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

from shardproof.planner.inference.groups import Atom, Groups, inner_leaves
from shardproof.planner.ir.graph import Graph, Module, Op
from shardproof.planner.ir.placement import Placement, R, Shard
from shardproof.planner.ir.plan import TpEntry
from shardproof.planner.ir.styles import STYLES, After, Before, Style, packed_name, style_of


class IllegalError(Exception):
    """A group that cannot be sharded; the text is the reason."""


@dataclass(frozen=True)
class GroupUse:
    """One parameter with a dim of the group, and its placement if the group is sharded."""

    name: str
    module: Module
    local: str
    placement: Shard


class OpenError(IllegalError):
    """A module for which no style of its own fits; a style on a module around it may."""


@dataclass(frozen=True)
class GroupMember:
    """One module of a group: its parameters in the group, and the op in which it contracts the group's dim, if any."""

    module: Module
    uses: tuple[GroupUse, ...]
    summed: Op | None


def members_of(graph: Graph, atom: Atom, uses: list[GroupUse]) -> list[GroupMember]:
    """The modules of a group: those with parameters in it, and those that contract its dim."""
    by_module: dict[str, list[GroupUse]] = {}
    for use in uses:
        by_module.setdefault(use.module.path, []).append(use)
    summed = {graph.ops[position].module: graph.ops[position] for position in atom.sums}
    return [
        GroupMember(graph.module_of[path], tuple(by_module.get(path, ())), summed.get(path))
        for path in dict.fromkeys((*by_module, *summed))
    ]


def closed_one_by_one(groups: Groups, atom: Atom, members: list[GroupMember]) -> list[TpEntry]:
    """An entry for each module of a group, whose style takes and gives what its neighbours give and take.

    Raises:
        IllegalError: a module has no such style; `OpenError` where one on a module around it may do.
    """
    entries: list[TpEntry] = []
    for member in members:
        if not member.uses and member.summed is not None:
            where = f"{member.module.path or 'the model'} ({member.summed.source})"
            raise OpenError(f"summed over in {where}, where no style can reduce it")
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


def _linear_entry(graph: Graph, atom: Atom, member: GroupMember) -> TpEntry:
    module, numbers = member.module, dict(member.module.numbers)
    wanted = _wanted_placements(member)
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


def _styles_for(graph: Graph, member: GroupMember) -> list[Style]:
    """The styles to choose from: of a module that is no Transformers model, also those of as many packed blocks as there are."""
    blocks = max((use.placement.blocks for use in member.uses), default=1)
    if not graph.any_module or blocks == 1:
        return list(STYLES.values())
    named = style_of(packed_name("colwise" if member.summed is None else "rowwise", (1,) * blocks))
    return [*STYLES.values(), *([named] if named is not None else [])]


def _wanted_placements(member: GroupMember) -> dict[str, Placement]:
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


def _layouts(graph: Graph, atom: Atom, member: GroupMember) -> list[TpEntry]:
    """One entry per parameter, for a module that uses its parameters without a linear layer, such as stacked experts."""
    _wanted_placements(member)
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


def _raw_hook(groups: Groups, atom: Atom, member: GroupMember) -> TpEntry:
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
        raise OpenError(
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


def closed_together(groups: Groups, atom: Atom, members: list[GroupMember]) -> list[TpEntry]:
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


def _because(graph: Graph, use: GroupUse, atom: Atom, *, summed: Op | None) -> str:
    number = graph.parameters[use.name]
    role = "sums over" if summed is not None else "makes"
    op = summed or next((graph.ops[p] for p in graph.users.get(number, ())), None)
    where = f" at {op.source}" if op is not None and op.source else ""
    chain = " -> ".join(_chain(graph, number))
    packed = f", {use.placement.blocks} packed blocks" if use.placement.blocks > 1 else ""
    return f"{role} a dim of {atom.size} independent parts{packed}: {chain}{where}"


def _brief(use: GroupUse, atom: Atom, *, summed: Op | None) -> str:
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
