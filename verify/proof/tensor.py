"""Is a tensor-parallel plan right? The per-rank program against the single-device program, forward and backward.

Nothing here infers: the plan is given, and every finding follows from relating the two programs (`planner.propagation`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.planner.ir.graph import Graph, Op
from shardproof.planner.ir.placement import Shard
from shardproof.planner.ir.plan import generic
from shardproof.planner.ir.readable_text import nearest_names
from shardproof.planner.judge import (
    Fault,
    NoLookup,
    RankFails,
    Strided,
    Unlike,
    Unregistered,
    Untraced,
    WrittenOutput,
    backward_faults,
    judge,
    related_programs,
    untraced,
)
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.propagation.backward import GradientFault
from shardproof.planner.propagation.forward.propagate import Propagation
from shardproof.planner.propagation.forward.relation import Stuck
from shardproof.planner.propagation.reach import Unreachable
from shardproof.planner.tracing.programs import Subject
from shardproof.planner.tracing.rank_program import HookError, IndivisibleError
from shardproof.planner.transformers_facts.styles import registered
from shardproof.planner.weights.conversions import Misplaced
from shardproof.planner.weights.init_weights import UnloadableError
from shardproof.verify.findings import pl101, tp201, tp202, tp207, tp208, tp210, tp215, tp216, tp217, tp218, tp220

UNDECIDED = {"TP210", "TP211"}


def check_tensor(
    subject: Subject, styles: Mapping[str, str], degree: int, *, one_side: bool = False
) -> tuple[Finding, ...]:
    """Findings TP2xx of one plan at one degree in the mode of the subject; `styles` has its keys as the head model sees them.

    Faults of the forward hide those of the backward. `one_side`: the program is the other side of a branch on data.
    """
    found = judge(subject, styles, degree, one_side=one_side)
    local = found.ran.local if found.ran is not None else None
    accused = _findings(subject, found.assigned, degree, (*found.forward, *found.gradients), local)
    entries = {finding.place.entry for finding in accused}
    loading = tuple(_of_misplaced(one) for one in found.loading if one.entry not in entries)
    undecided = _findings(subject, found.assigned, degree, found.undecided)
    return (*accused, *loading, *undecided)


def relate(
    subject: Subject, assigned: Assigned, degree: int, *, distributed: bool = True, by_torch: bool = False
) -> Propagation | tuple[Finding, ...]:
    """Relate the single-device and the per-rank program of a layout at one degree; the findings where they cannot be related.

    `distributed`: the client keeps sharded parameters as distributed tensors, as Transformers does, so that an op may use one
    only where a style's hook has made it local. `by_torch`: torch's own styles lay them out, which take uneven parts.
    """
    ran, faults = related_programs(subject, assigned, degree, distributed=distributed, by_torch=by_torch)
    if ran is not None and not faults:
        return ran
    return _findings(subject, assigned, degree, faults, ran.local if ran is not None else None)


def check_relation(subject: Subject, ran: Propagation, assigned: Assigned) -> tuple[Finding, ...]:
    """Findings of two related programs: parameters that no op used, else wrong gradients of trained parameters."""
    return _findings(subject, assigned, 0, untraced(ran.local, assigned) or backward_faults(subject, ran, assigned))


def _findings(
    subject: Subject, assigned: Assigned, degree: int, faults: Iterable[Fault], local: Graph | None = None
) -> tuple[Finding, ...]:
    return once(tuple(_of_fault(subject, assigned, degree, fault, local) for fault in faults))


def _of_fault(subject: Subject, assigned: Assigned, degree: int, fault: Fault, local: Graph | None) -> Finding:
    match fault:
        case IndivisibleError():
            shape, placement = fault.shape, fault.placement
            return tp201.does_not_divide(
                fault.parameter, fault.entry, shape=shape, placement=placement, degree=fault.degree
            )
        case UnloadableError():
            return tp215.not_initialisable(str(fault), Place(fault.entry, fault.module, fault.source))
        case RankFails():
            return _local_failure(subject.graph, assigned, fault, degree)
        case Unreachable():
            return tp215.used_out_of_reach(fault.parameter, fault.op, fault.entry)
        case Stuck():
            return _of_stuck(local or subject.graph, fault)
        case Untraced():
            return tp210.parameter_not_used(fault.parameter, fault.entry)
        case Strided():
            return tp217.transposed_input(fault.entry, Place(module=fault.op.module, source=fault.op.source))
        case WrittenOutput():
            return tp218.output_written_in_place(
                fault.module, fault.op.target, Place(fault.entry, fault.op.module, fault.op.source)
            )
        case GradientFault():
            return _of_gradient(fault)
        case Misplaced():
            return _of_misplaced(fault)
        case Unregistered(style, entry):
            return pl101.unknown_style(entry, style, nearest_names(style, registered()), known=sorted(registered()))
        case Unlike(module, entry, style, why):
            return tp210.style_not_modelled(style, Place(entry, module), why)
        case NoLookup(twice=True):
            return tp210.lookup_used_twice(fault.module, fault.entry)
        case NoLookup():
            return tp210.embedding_style_elsewhere(fault.module, fault.entry)
        case _:
            assert_never(fault)


def _of_misplaced(found: Misplaced) -> Finding:
    sources = ", ".join(found.sources)
    place = Place(found.entry, found.name.rpartition(".")[0])
    if not found.known:
        return tp210.conversion_not_tried(found.name, place, sources=sources, placement=found.placement)
    return tp216.part_is_mixed(found.name, place, sources=sources, placement=found.placement, held=found.held)


def once(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """One finding for each fault: layers of several kinds repeat the same one."""
    kept: dict[tuple[str, str | None, str], Finding] = {}
    for finding in findings:
        where = str(finding.place.source or finding.message)
        kept.setdefault((finding.code, finding.place.entry, where), finding)
    return tuple(kept.values())


def _local_failure(graph: Graph, assigned: Assigned, fault: RankFails, degree: int) -> Finding:
    """The finding of a rank's forward that raises: because a dim does not divide, parts do not fit together, or the code
    contains a size of the whole model.
    """
    error = fault.error
    if isinstance(error.__cause__, HookError):
        hooked = Place(assigned.modules[error.module][1], error.module, error.source)
        return tp202.hook_fails(str(error.__cause__), hooked)
    near = [name for name in assigned.parameters if name.startswith(f"{error.module}.") or not error.module]
    uneven = [name for name in near if _is_uneven(graph, assigned, name, degree)]
    name = next(iter(uneven or near), None)
    entry = assigned.parameters[name][1] if name is not None else None
    place = Place(entry, error.module, error.source)
    if uneven:
        shape = graph.values[graph.parameters[uneven[0]]].shape
        return tp201.uneven_part_fails(uneven[0], place, shape=shape, degree=degree, error=str(error))
    if fault.stuck is not None and error.before is not None:
        return _of_stuck(error.before, fault.stuck)
    if error.before is not None:
        place = replace(place, entry=fault.entry or entry)
    return tp202.local_forward_fails(str(error), place, sharded=bool(near))


def _is_uneven(graph: Graph, assigned: Assigned, name: str, degree: int) -> bool:
    placement = assigned.parameters[name][0]
    shape = graph.values[graph.parameters[name]].shape
    return isinstance(placement, Shard) and shape[placement.dim] % (placement.blocks * degree) > 0


def _of_stuck(local: Graph, stuck: Stuck) -> Finding:
    source = stuck.op.source if stuck.op is not None else None
    entry = _missing_entry(local, stuck) or stuck.entry
    where = f" in {stuck.module}" if stuck.module else ""
    return Finding(
        stuck.code,
        Severity.UNDECIDED if stuck.code in UNDECIDED else Severity.ERROR,
        f"{stuck.message}{where}",
        Place(entry, stuck.module or None, source),
        why=stuck.why,
        found=stuck.found,
        needed=stuck.needed,
    )


def _missing_entry(local: Graph, stuck: Stuck) -> str | None:
    """The entry (missing or wrong) of the module that made the wrong operand, where that module is near the op."""
    owner = _owner(local, stuck.blame) if stuck.blame is not None else None
    if owner is None:
        return None
    inside = owner == stuck.module or owner.startswith(f"{stuck.module}.")
    feeds = owner.rpartition(".")[0] == stuck.module.rpartition(".")[0] and "out_features" in dict(
        local.module_of[owner].numbers
    )
    return local.key(owner) if inside or feeds else None


def _owner(graph: Graph, number: int) -> str | None:
    """The module that holds a value as a parameter, or the last module with parameters that it went through."""
    for module in graph.modules:
        if any(own == number for _, own in module.parameters):
            return module.path
    seen: set[int] = set()
    while number in graph.producer and number not in seen:
        seen.add(number)
        op = graph.ops[graph.producer[number]]
        if op.module in graph.module_of and graph.module_of[op.module].parameters:
            return op.module
        if not op.inputs:
            return None
        number = _widest(graph, op)
    return None


def _widest(graph: Graph, op: Op) -> int:
    """The operand to follow back: the first one that an op computed."""
    return next((number for number in op.inputs if number in graph.producer), op.inputs[0])


def _of_gradient(fault: GradientFault) -> Finding:
    own = fault.root is not None and fault.root.module == fault.parameter
    owner = fault.parameter if own else fault.parameter.rpartition(".")[0]
    source = fault.root.source if fault.root is not None else None
    place = Place(fault.entry or generic(owner), owner, source)
    if fault.code == "TP220":
        return tp220.own_backward_of_partial_gradient(fault.parameter, place)
    if fault.code == "TP208":
        return tp208.whole_gradient_is_summed(fault.parameter, place)
    return tp207.gradient_stays_partial(fault.parameter, place)
