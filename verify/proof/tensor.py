"""Is a tensor-parallel plan right? The per-rank program against the single-device program, forward and backward.

Nothing here infers: the plan is given, and every finding follows from relating the two programs (`planner.propagation`).
"""

from collections.abc import Mapping
from dataclasses import replace

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.planner.ir.graph import Graph, Op
from shardproof.planner.ir.placement import Shard
from shardproof.planner.ir.plan import generic
from shardproof.planner.propagation.assign import Assigned, assign, looks_up
from shardproof.planner.propagation.backward import GradientFault, gradient_faults, nearest
from shardproof.planner.propagation.propagate import Propagation, explain_failure, propagate
from shardproof.planner.propagation.reach import strided, unreachable
from shardproof.planner.propagation.relation import Stuck
from shardproof.planner.tracing.programs import Subject, local_program
from shardproof.planner.tracing.rank_program import HookError, IndivisibleError
from shardproof.planner.tracing.trace import TraceError
from shardproof.planner.weights.conversions import Misplaced, misplaced
from shardproof.planner.weights.init_weights import UnloadableError, check_initial
from shardproof.verify.findings import tp201, tp202, tp207, tp208, tp210, tp215, tp216, tp217

UNDECIDED = {"TP210", "TP211"}


def check_tensor(subject: Subject, styles: Mapping[str, str], degree: int) -> tuple[Finding, ...]:
    """Findings TP2xx of one plan at one degree; `styles` has its keys as the head model sees them.

    Forward faults hide backward ones: gradients are looked at once the forward is right.
    """
    assigned = assign(subject.graph, styles, base_prefix=subject.prefix)
    opaque = _opaque(subject.graph, assigned)
    if hidden := {*opaque.values()}:
        styles = {key: style for key, style in styles.items() if not {key, key.rpartition(".")[0]} & hidden}
        assigned = assign(subject.graph, styles, base_prefix=subject.prefix)
    ran = relate(subject, assigned, degree)
    found = check_relation(subject, ran, assigned) if isinstance(ran, Propagation) else ran
    accused = {finding.place.entry for finding in found}
    mixed = [_of_misplaced(one) for one in misplaced(subject.model, assigned, degree) if one.entry not in accused]
    return (
        *found,
        *mixed,
        *_once(tuple(tp210.embedding_style_elsewhere(path, entry) for path, entry in opaque.items())),
    )


def _of_misplaced(found: Misplaced) -> Finding:
    sources = ", ".join(found.sources)
    place = Place(found.entry, found.name.rpartition(".")[0])
    if not found.known:
        return tp210.conversion_not_tried(found.name, place, sources=sources, placement=found.placement)
    return tp216.part_is_mixed(found.name, place, sources=sources, placement=found.placement, held=found.held)


def _opaque(graph: Graph, assigned: Assigned) -> dict[str, str]:
    """Modules with a style for embeddings that are no lookup, and their entries.

    The client runs these on distributed tensors, whose sharding of results is torch's. A module that is never called, such as the
    holder of a tied table, is left out.
    """
    styled = {path: entry for path, (style, entry) in assigned.modules.items() if looks_up(style)}
    # A repeated layer has no ops of its own: the first of its kind stands for it.
    runs = {generic(op.module) for op in graph.ops} if styled else set()
    searched = {generic(op.module) for op in graph.ops if op.target.endswith("embedding")} if styled else set()
    return {path: entry for path, entry in styled.items() if generic(path) in runs - searched}


def check_relation(subject: Subject, ran: Propagation, assigned: Assigned) -> tuple[Finding, ...]:
    """Findings of two related programs: parameters that no op used, else wrong gradients of trained parameters."""
    if unseen := _never_used(ran.local, assigned):
        return unseen
    frozen = {name for name, value in subject.model.named_parameters() if not value.requires_grad}
    faults = (fault for fault in gradient_faults(ran, assigned) if fault.parameter not in frozen)
    apart = tuple(
        tp217.transposed_input(entry, Place(module=op.module, source=op.source))
        for op, entry in strided(ran.local, assigned)
    )
    return _once(apart + tuple(_of_gradient(fault) for fault in nearest(ran, tuple(faults))))


def relate(
    subject: Subject, assigned: Assigned, degree: int, *, distributed: bool = True
) -> Propagation | tuple[Finding, ...]:
    """Relate the single-device and the per-rank program of one plan at one degree; the findings where they cannot be related.

    `distributed`: the client keeps sharded parameters as distributed tensors, as Transformers does, so that an op may use one
    only where a style's hook has made it local.
    """
    try:
        if distributed:
            check_initial(subject.model, assigned)
        local = local_program(subject.model, assigned, degree, distributed=distributed)
    except IndivisibleError as error:
        shape, degree = error.shape, error.degree
        return (
            tp201.does_not_divide(error.parameter, error.entry, shape=shape, placement=error.placement, degree=degree),
        )
    except UnloadableError as error:
        return (tp215.not_initialisable(str(error), Place(error.entry, error.module, error.source)),)
    except TraceError as error:
        return (_local_failure(subject.graph, assigned, error, degree),)
    if distributed and (apart := unreachable(local, assigned)):
        return _once(tuple(tp215.used_out_of_reach(found.parameter, found.op, found.entry) for found in apart))
    ran = propagate(subject.graph, local, assigned, degree)
    return _once(tuple(_of_stuck(ran.local, stuck) for stuck in ran.stuck)) if ran.stuck else ran


def _never_used(local: Graph, assigned: Assigned) -> tuple[Finding, ...]:
    """Sharded parameters that no traced op used, in no layer that the pattern matches: nothing is proved of them."""
    silent = {e: name for name, (_, e) in assigned.parameters.items() if generic(name) not in local.used_parameters}
    return tuple(tp210.parameter_not_used(name, entry) for entry, name in silent.items())


def _once(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """One finding for each fault: layers of several kinds repeat the same one."""
    kept: dict[tuple[str, str | None, str], Finding] = {}
    for finding in findings:
        where = str(finding.place.source or finding.message)
        kept.setdefault((finding.code, finding.place.entry, where), finding)
    return tuple(kept.values())


def _local_failure(graph: Graph, assigned: Assigned, error: TraceError, degree: int) -> Finding:
    """The finding of a rank's forward that raises: because a dim does not divide, parts do not fit together, or the code
    contains a size of the whole model.
    """
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
    if error.before is not None:
        stuck, behind = explain_failure(graph, error.before, error.failed, assigned, degree)
        if stuck is not None:
            return _of_stuck(error.before, stuck)
        place = replace(place, entry=behind or entry)
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
    return generic(owner) if inside or feeds else None


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
    if fault.code == "TP208":
        return tp208.whole_gradient_is_summed(fault.parameter, place)
    return tp207.gradient_stays_partial(fault.parameter, place)
