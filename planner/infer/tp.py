"""Read a tensor-parallel plan off the groups, then let the per-rank program dispose of what it cannot bear.

1. Vocabulary tables, and the heads tied to them, are split over their rows.
2. Every group that nothing forbids asks for a shard of each parameter that it runs through; the styles are searched (as data)
   for those that lay the parameters out just so.
3. The proposal is run as a per-rank program and related to the single-device program. A group in which that gets stuck is
   given up, with the reason (a head count written into a view, say).
4. Large matrices that are left are split with their output gathered.
5. The backward pass tells which replicated parameters need their gradient summed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

from planner.infer.groups import Atom, Dim, Groups, infer_groups, leaves, root, size_of
from planner.infer.probe import Probe, Verdict
from planner.ir.graph import Graph, Module, Op
from planner.ir.placement import Placement, R, Shard
from planner.ir.plan import TpEntry, generic, join
from planner.ir.styles import STYLES, After, Before, Style
from planner.sharding.gradients import GradientFault

WORTH_SHARE = 0.01
WORTH_ELEMENTS = 1 << 26
"""A matrix is worth a collective of its own from this share of all parameters on, or from this many elements."""


PACKED_MOST = 3
"""Projections are packed out of up to three parts; a shard of more blocks is a group of no interest (a head's own width)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One group as a proposal: entries (as the head model sees them), how many parts it has, what it would shard."""

    entries: tuple[TpEntry, ...]
    size: int
    parameters: frozenset[str]


@dataclass
class Inference:
    """The outcome: entries as the head model sees them, why the rest stays whole, the sizes that degrees must divide."""

    entries: dict[str, TpEntry] = field(default_factory=dict)
    unplanned: dict[str, str] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)


Prober: TypeAlias = Callable[[Mapping[str, str], int], Probe]


class Illegal(Exception):
    """A group that cannot be sharded; the text is the reason."""


@dataclass(frozen=True)
class _Use:
    """One parameter that a group runs through, and how it would be sharded."""

    name: str
    module: Module
    local: str
    placement: Shard


def infer_tp(graph: Graph, probe: Prober) -> Inference:
    """Infer the plan of a traced model.

    Args:
        graph: the single-device program.
        probe: runs a proposal (entry -> style, degree) as a per-rank program and says where it breaks.
    """
    groups = infer_groups(graph)
    result = Inference()
    reasons: dict[str, str] = {}
    without_style: dict[str, str] = {}
    _add_whole_matrices(groups, result, probe, reasons, tables=True)
    tables = dict(result.entries)
    candidates = _consistent(_candidates(groups, without_style), result, reasons)
    while True:
        candidates = _settle(candidates, result, probe, reasons)
        result.entries = tables | {entry.pattern: entry for c in candidates for entry in c.entries}
        result.sizes = [candidate.size for candidate in candidates]
        left = _add_gradient_rules(result, probe)
        if left is None or not candidates:
            break
        candidates = _without(candidates, left, reasons)
    reasons = without_style | reasons
    _add_whole_matrices(groups, result, probe, reasons, tables=False)
    result.unplanned = _unplanned(groups, result, reasons)
    return result


def _without(candidates: list[Candidate], fault: GradientFault, reasons: dict[str, str]) -> list[Candidate]:
    """Give up the group that leaves a gradient partial for which no style has a sum."""
    module = fault.root.module if fault.root is not None else fault.parameter.rpartition(".")[0]
    where = f" ({fault.root.source})" if fault.root is not None else ""
    blamed = _blamed(candidates, Probe(Verdict.WRONG, module=module))
    for entry in blamed.entries:
        reasons.setdefault(entry.pattern, f"no style sums the gradient of {fault.parameter} over the ranks{where}")
    return [candidate for candidate in candidates if candidate is not blamed]


def _candidates(groups: Groups, reasons: dict[str, str]) -> list[Candidate]:
    """One candidate a legal group, largest first; for the others, the reason by module pattern."""
    found: list[Candidate] = []
    owners = {name: (module, local) for module in groups.graph.modules for name, local in _own(module)}
    classes = sorted(_classes(groups, owners).items(), key=lambda item: max(use.placement.blocks for use in item[1]))
    for atom, uses in classes:
        try:
            found.append(_candidate(groups.graph, atom, uses))
        except Illegal as illegal:
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
            for atom in _inner_leaves(dim):
                blocks = _blocks(dim, atom)
                if not atom.locks and blocks is not None:
                    found.setdefault(atom, []).append(_Use(name, module, local, Shard(position, blocks)))
    return found


def _inner_leaves(dim: Dim) -> list[Atom]:
    found: dict[Atom, None] = {}
    for atom in leaves(dim):
        if not atom.blocks:
            found[atom] = None
        for block in atom.blocks:
            found |= dict.fromkeys(_inner_leaves(block))
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
    """The entries that shard one group; `Illegal` where no styles do."""
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
            raise Illegal(f"summed over in {path or 'the model'} ({op.source}), where no style can reduce it")
    return Candidate(tuple(entries.values()), atom.size, frozenset(use.name for use in uses))


def _entries(graph: Graph, uses: list[_Use], summed: Op | None, atom: Atom) -> list[TpEntry]:
    module = uses[0].module
    wanted: dict[str, Placement] = {local: R for local, _ in module.parameters}
    for use in uses:
        if wanted[use.local] not in (R, use.placement):
            raise Illegal(f"{use.name} would be split along two dims at once")
        wanted[use.local] = use.placement
    numbers = dict(module.numbers)
    for style in STYLES.values():
        if _hooks_fit(style, summed) and style.needs in (None, *numbers) and _lays_out(graph, style, module, wanted):
            return [TpEntry(generic(module.path), style.name, _because(graph, uses[0], atom, summed=summed))]
    if "out_features" in numbers or "in_features" in numbers:
        shown = ", ".join(f"{local} {placement}" for local, placement in wanted.items())
        raise Illegal(f"no Transformers style lays out {module.path} as {shown}")
    return _raw_entries(graph, uses, summed, atom)


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
            raise Illegal(f"no Transformers style lays out {use.name} as {use.placement}")
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


def _consistent(candidates: list[Candidate], result: Inference, reasons: dict[str, str]) -> list[Candidate]:
    """One style a pattern: a group that wants another style for a pattern than a larger group gives way."""
    kept: list[Candidate] = []
    styles = _styles(result.entries.values())
    for candidate in candidates:
        clash = next((e for e in candidate.entries if styles.get(e.pattern, e.style) != e.style), None)
        if clash is None:
            kept.append(candidate)
            styles |= _styles(candidate.entries)
        else:
            for entry in candidate.entries:
                reasons.setdefault(entry.pattern, f"{clash.pattern} is already {styles[clash.pattern]}")
    return kept


def _settle(candidates: list[Candidate], result: Inference, probe: Prober, reasons: dict[str, str]) -> list[Candidate]:
    """Give up groups until the per-rank program relates to the single-device program."""
    chosen = list(candidates)
    while chosen:
        degree = probe_degree([candidate.size for candidate in chosen])
        proposal = _styles((*result.entries.values(), *(entry for c in chosen for entry in c.entries)))
        found = probe(proposal, degree)
        if found.verdict is Verdict.RIGHT:
            return chosen
        blamed = _blamed(chosen, found)
        for entry in blamed.entries:
            reasons.setdefault(entry.pattern, found.reason)
        chosen = [c for c in chosen if c is not blamed and not _shares(c, blamed)]
    return []


def _styles(entries: Iterable[TpEntry]) -> dict[str, str]:
    return {entry.pattern: entry.style for entry in entries}


def _shares(one: Candidate, other: Candidate) -> bool:
    return bool({e.pattern for e in one.entries} & {e.pattern for e in other.entries})


def _blamed(chosen: list[Candidate], found: Probe) -> Candidate:
    """The group whose entry is at fault, else the one closest in the module tree, else the smallest."""
    for candidate in chosen:
        if found.entry in {entry.pattern for entry in candidate.entries}:
            return candidate
    near = generic(found.module)

    def distance(candidate: Candidate) -> int:
        return max(_common(entry.pattern, near) for entry in candidate.entries)

    return max(reversed(chosen), key=distance)


def _common(one: str, other: str) -> int:
    count = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count


def probe_degree(sizes: Iterable[int]) -> int:
    """The smallest degree above one that divides the most sizes."""
    sizes = list(sizes)
    return max((2, 3, 5, 7), key=lambda degree: (sum(size % degree == 0 for size in sizes), -degree))


def _add_whole_matrices(
    groups: Groups, result: Inference, probe: Prober, reasons: dict[str, str], *, tables: bool
) -> None:
    """Split large matrices on their own, one proposal at a time, where the probe agrees.

    With `tables`, those that are looked up by row, and the heads tied to them; else linear layers, their output gathered.
    """
    degree = probe_degree(result.sizes or [2])
    proposals = [
        entries
        for entries in _large_leftovers(groups, result, reasons)
        if any(entry.style == "embedding_rowwise" for entry in entries) is tables
    ]
    together = [entry for entries in proposals for entry in entries]
    if not together or probe(_styles((*result.entries.values(), *together)), degree).verdict is Verdict.RIGHT:
        result.entries |= {entry.pattern: entry for entry in together}
        return
    for entries in proposals:
        found = probe(_styles((*result.entries.values(), *entries)), degree)
        if found.verdict is Verdict.RIGHT:
            result.entries |= {entry.pattern: entry for entry in entries}
        else:
            for entry in entries:
                reasons.setdefault(entry.pattern, found.reason)


def _large_leftovers(groups: Groups, result: Inference, reasons: Mapping[str, str]) -> list[list[TpEntry]]:
    """Proposals for modules without an entry whose parameters are worth a collective; tied ones go together."""
    graph = groups.graph
    looked_up = {op.inputs[0] for op in graph.ops if op.target.endswith("embedding") and op.inputs}
    total = sum(prod(value.shape) for value in graph.values if value.name is not None)
    proposals: dict[int, list[TpEntry]] = {}
    seen: set[str] = set()
    for module in graph.modules:
        pattern = generic(module.path)
        weights = [number for _, number in module.parameters if len(graph.values[number].shape) == 2]
        if pattern in result.entries or pattern in seen or len(weights) != 1:
            continue
        seen.add(pattern)
        tied = weights[0] in looked_up and _times_used(graph, weights[0]) > 1
        if tied or _weight(graph, pattern) >= WORTH_SHARE * total or prod(graph.values[weights[0]].shape) >= WORTH_ELEMENTS:
            reason = reasons.get(pattern) or _locked(groups, module)
            entry = _on_its_own(module, looked_up, weights[0], reason)
            if entry is not None:
                proposals.setdefault(weights[0], []).append(entry)
    return list(proposals.values())


def _times_used(graph: Graph, number: int) -> int:
    return sum(number == own for module in graph.modules for _, own in module.parameters)


def _weight(graph: Graph, pattern: str) -> int:
    """Elements of all parameters under one pattern."""
    found = (m for m in graph.modules if generic(m.path) == pattern)
    return sum(prod(graph.values[number].shape) for module in found for _, number in module.parameters)


def _on_its_own(module: Module, looked_up: set[int], weight: int, reason: str) -> TpEntry | None:
    """The entry that splits one matrix without asking anything of its surroundings."""
    pattern = generic(module.path)
    if "Embedding" in module.bases and weight in looked_up:
        return TpEntry(pattern, "embedding_rowwise", "a table looked up by row: a rank holds some rows, and the lookups are summed")
    if "Linear" in module.bases and "out_features" in dict(module.numbers):
        because = f"its rows are split and its output gathered, for the output is needed whole: {reason}"
        return TpEntry(pattern, "colwise_gather_output", because)
    return None


def _add_gradient_rules(result: Inference, probe: Prober) -> GradientFault | None:
    """Give every parameter whose gradient stays partial the style that sums it; one that no style helps is returned."""
    degree = probe_degree(result.sizes or [2])
    found = probe(_styles(result.entries.values()), degree)
    while found.gradients:
        fault = found.gradients[-1]
        entry, found = _gradient_rule(_styles(result.entries.values()), fault, found, probe, degree)
        if entry is None:
            return fault
        result.entries[entry.pattern] = entry
    return None


def _gradient_rule(
    styles: Mapping[str, str], fault: GradientFault, found: Probe, probe: Prober, degree: int
) -> tuple[TpEntry | None, Probe]:
    """A rule for one parameter after which it is no longer at fault, and what is left then."""
    pattern = generic(fault.parameter.rpartition(".")[0])
    if fault.code != "TP207" or pattern in styles:
        return None, found
    for style in ("replicated_with_grad_allreduce", "mla_kv_a_proj"):
        after = probe({**styles, pattern: style}, degree)
        if after.verdict is Verdict.RIGHT and all(generic(f.parameter) != generic(fault.parameter) for f in after.gradients):
            where = f" ({fault.root.source})" if fault.root is not None else ""
            because = f"whole on every rank, but each sees only its own shard's gradient{where}: the gradients are summed"
            return TpEntry(pattern, style, because), after
    return None, found


def _unplanned(groups: Groups, result: Inference, reasons: Mapping[str, str]) -> dict[str, str]:
    """Every module pattern with parameters that no entry shards, and why."""
    found: dict[str, str] = {}
    for module in groups.graph.modules:
        pattern = generic(module.path)
        covered = pattern in result.entries or any(generic(join(module.path, n)) in result.entries for n, _ in module.parameters)
        if module.parameters and not covered and pattern not in found:
            found[pattern] = reasons.get(pattern) or _locked(groups, module)
    return found


def _locked(groups: Groups, module: Module) -> str:
    """What forbids splitting a module's parameters."""
    for _, number in module.parameters:
        for dim in groups.dims.get(number, ()):
            for atom in _inner_leaves(dim):
                if atom.locks:
                    lock = atom.locks[0]
                    where = f" ({groups.graph.ops[lock.position].source})" if lock.position >= 0 else ""
                    return f"{lock.why}{where}"
    return "too small for a collective of its own"
