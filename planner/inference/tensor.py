"""Infer a tensor-parallel plan from the groups, and drop the groups that the per-rank program shows to be wrong.

1. Vocabulary tables, and heads tied to them, are sharded along their rows.
2. Every group that is not forbidden needs a shard of each parameter that it runs through; the style table is searched for
entries
   with these placements.
3. The proposal is traced as a per-rank program and related to the single-device program. A group at fault is dropped, with the
   reason (such as a head count written into a view).
4. The backward analysis says which replicated parameters need an all-reduce of their gradient.
5. Large matrices that are left are sharded alone, with a gathered output.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from shardproof.planner.inference.candidates import Candidate, find_candidates, locked
from shardproof.planner.inference.groups import Groups, infer_groups
from shardproof.planner.inference.matrices import large_leftovers
from shardproof.planner.inference.probe import Probe, Prober
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import TpEntry, common_parts, generic, join
from shardproof.planner.propagation.assign import automatic
from shardproof.planner.propagation.backward import GradientFault


@dataclass
class Inference:
    """The result: entries (keys relative to the head model), why other modules are not sharded, the sizes that degrees must
    divide.
    """

    entries: dict[str, TpEntry] = field(default_factory=dict)
    unplanned: dict[str, str] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    refused: list[Candidate] = field(default_factory=list)
    reasons: Mapping[str, str] = field(default_factory=dict)
    groups: Groups | None = None


def infer_tp(graph: Graph, probe: Prober, base_prefix: str = "") -> Inference:
    """Infer the plan of a traced model.

    Args:
        graph: the single-device program.
        probe: judges a proposal (pattern -> style, at a degree) and says what is wrong with it.
        base_prefix: the attribute in which the head model holds its base model.
    """
    groups = infer_groups(graph)
    result = Inference(groups=groups)
    reasons: dict[str, str] = {}
    without_style: dict[str, str] = {}
    _add_tables(groups, result, probe, reasons, automatic(graph, base_prefix))
    tables = dict(result.entries)
    candidates = _consistent(find_candidates(groups, without_style), result, reasons)
    while True:
        result.entries = dict(tables)
        candidates = _settle(candidates, result, probe, reasons)
        result.entries = tables | {entry.pattern: entry for c in candidates for entry in c.entries}
        result.sizes = [candidate.size for candidate in candidates]
        left = _add_gradient_rules(result, probe)
        if left is None or not candidates:
            break
        candidates = _without(candidates, left, reasons)
    reasons = without_style | reasons
    _add_gathered(groups, result, probe, reasons)
    result.reasons, result.unplanned = reasons, _unplanned(groups, result, reasons)
    return result


def _without(candidates: list[Candidate], fault: GradientFault, reasons: dict[str, str]) -> list[Candidate]:
    """Drop the group that leaves a partial gradient which no style all-reduces, and those that share a pattern with it."""
    module = fault.root.module if fault.root is not None else fault.parameter.rpartition(".")[0]
    where = f" ({fault.root.source})" if fault.root is not None else ""
    blamed = _blamed(candidates, Probe(False, module=module))
    for entry in blamed.entries:
        reasons.setdefault(entry.pattern, f"no style sums the gradient of {fault.parameter} over the ranks{where}")
    return _unrelated(candidates, blamed)


def _consistent(candidates: list[Candidate], result: Inference, reasons: dict[str, str]) -> list[Candidate]:
    """Keep one style per pattern: drop a group that needs another style for a pattern than a larger group."""
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
    """Drop groups until the per-rank program relates to the single-device program."""
    chosen = list(candidates)
    while chosen:
        degree = probe_degree([candidate.size for candidate in chosen])
        proposal = _styles((*result.entries.values(), *(entry for c in chosen for entry in c.entries)))
        found = probe(proposal, degree)
        if found.right:
            return chosen
        blamed = _blamed(chosen, found)
        result.refused.append(blamed)
        for entry in blamed.entries:
            reasons.setdefault(entry.pattern, found.reason)
        chosen = _unrelated(chosen, blamed)
    return []


def _unrelated(candidates: list[Candidate], dropped: Candidate) -> list[Candidate]:
    """The groups that can stay without another one: an entry of both stands in the plan for both, or not at all."""
    return [each for each in candidates if each is not dropped and not _shares(each, dropped)]


def _styles(entries: Iterable[TpEntry]) -> dict[str, str]:
    return {entry.pattern: entry.style for entry in entries}


def _shares(one: Candidate, other: Candidate) -> bool:
    return bool({e.pattern for e in one.entries} & {e.pattern for e in other.entries})


def _blamed(chosen: list[Candidate], found: Probe) -> Candidate:
    """The group whose entry is at fault, else the group closest to the fault in the module tree, else the smallest."""
    for candidate in chosen:
        if found.entry in {entry.pattern for entry in candidate.entries}:
            return candidate
    near = generic(found.module)

    def distance(candidate: Candidate) -> int:
        return max(common_parts(entry.pattern, near) for entry in candidate.entries)

    return max(reversed(chosen), key=distance)


def probe_degree(sizes: Iterable[int]) -> int:
    """The smallest degree above one that divides the most sizes."""
    sizes = list(sizes)
    return max((2, 3, 5, 7), key=lambda degree: (sum(size % degree == 0 for size in sizes), -degree))


def _add_tables(
    groups: Groups, result: Inference, probe: Prober, reasons: dict[str, str], unasked: Mapping[str, str]
) -> None:
    """Shard the tables that are looked up by row, and the heads tied to them. The client shards those in `unasked` even
    without an entry; if that is wrong, they get an entry that replicates them, under the key that is heard.
    """
    proposals = large_leftovers(groups, result.entries, reasons, sizes=(), tables=True)
    proposals.sort(key=lambda entries: not any(entry.pattern in unasked for entry in entries))
    _add_agreed(proposals, result, probe, reasons, unasked)


def _add_gathered(groups: Groups, result: Inference, probe: Prober, reasons: dict[str, str]) -> None:
    """Shard the linear layers that are large enough on their own, with a gathered output."""
    proposals = large_leftovers(groups, result.entries, reasons, sizes=result.sizes, tables=False)
    _add_agreed(proposals, result, probe, reasons)


def _add_agreed(
    proposals: list[list[TpEntry]],
    result: Inference,
    probe: Prober,
    reasons: dict[str, str],
    unasked: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Add all proposals together if the probe finds no fault, else add them one at a time."""
    degree = probe_degree(result.sizes or [2])
    together = [entry for entries in proposals for entry in entries]
    if not together or probe(_styles((*result.entries.values(), *together)), degree).right:
        result.entries |= {entry.pattern: entry for entry in together}
        return
    for entries in proposals:
        found = probe(_styles((*result.entries.values(), *entries)), degree)
        if found.right:
            result.entries |= {entry.pattern: entry for entry in entries}
            continue
        for entry in entries:
            reasons.setdefault(entry.pattern, found.reason)
            if entry.pattern in unasked:
                because = f"kept whole, for the client splits it where no entry stands: {found.reason}"
                brief = "kept whole; without an entry it is split"
                key = unasked[entry.pattern]
                result.entries[key] = TpEntry(key, "replicate", because, brief)


def _add_gradient_rules(result: Inference, probe: Prober) -> GradientFault | None:
    """Give every parameter with a partial gradient a style that all-reduces it; return the first one that no style helps."""
    degree = probe_degree(result.sizes or [2])
    found = probe(_styles(result.entries.values()), degree)
    while found.gradients:
        fault = found.gradients[-1]
        entry, found = _gradient_rule(result.groups, _styles(result.entries.values()), fault, found, probe, degree)
        if entry is None:
            return fault
        result.entries[entry.pattern] = entry
    return None


def _gradient_rule(
    groups: Groups | None, styles: Mapping[str, str], fault: GradientFault, found: Probe, probe: Prober, degree: int
) -> tuple[TpEntry | None, Probe]:
    """An entry with which one parameter is no longer at fault, and the probe's result with that entry."""
    assert groups is not None
    pattern = groups.graph.key(fault.parameter.rpartition(".")[0])
    if fault.code != "TP207" or pattern in styles:
        return None, found
    for style in ("replicated_with_grad_allreduce", "mla_kv_a_proj"):
        after = probe({**styles, pattern: style}, degree)
        if after.right and all(generic(f.parameter) != generic(fault.parameter) for f in after.gradients):
            where = f" ({fault.root.source})" if fault.root is not None else ""
            because = (
                f"whole on every rank, but each sees only its own shard's gradient{where}: the gradients are summed"
            )
            return TpEntry(pattern, style, because, "whole, its gradients summed over the ranks"), after
    return None, found


def _unplanned(groups: Groups, result: Inference, reasons: Mapping[str, str]) -> dict[str, str]:
    """Every module pattern with parameters that no entry shards, and the reason."""
    found: dict[str, str] = {}
    for module in groups.graph.modules:
        pattern = groups.graph.key(module.path)
        covered = pattern in result.entries or any(
            groups.graph.key(join(module.path, n)) in result.entries for n, _ in module.parameters
        )
        if module.parameters and not covered and pattern not in found:
            found[pattern] = reasons.get(pattern) or locked(groups, module)
    return found
