"""Is a tensor-parallel proposal right at one degree? The one decision, for the inference's probe and for the proof alike.

A rank's program is recorded with the parameters laid out as the proposal says, and related to the single-device program
operator by operator, forward and backward (`planner.propagation`). The result is data: the faults, in the order in which they
hide each other. Nothing here infers, and nothing here phrases a finding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from shardproof.planner.inputs.run_modes import RunMode
from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.graph import Graph, Op
from shardproof.planner.ir.placement import Shard
from shardproof.planner.ir.plan import generic
from shardproof.planner.ir.styles import STYLES, After, is_packed_name, style_of
from shardproof.planner.propagation.assign import Assigned, assign, looks_up
from shardproof.planner.propagation.backward import GradientFault, gradient_faults, nearest
from shardproof.planner.propagation.forward.propagate import Propagation, explain_failure, propagate
from shardproof.planner.propagation.forward.relation import Stuck
from shardproof.planner.propagation.reach import Unreachable, strided, unreachable
from shardproof.planner.tracing.programs import Subject, local_program, subject_in
from shardproof.planner.tracing.rank_program import IndivisibleError
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.transformers_facts.styles import differs, lays_out_otherwise, parts_alike, registered
from shardproof.planner.weights.conversions import Misplaced, misplaced
from shardproof.planner.weights.init_weights import UnloadableError, check_initial


@dataclass(frozen=True, slots=True)
class RankFails:
    """A rank's forward that raises: the error, what the rules say of the operator that failed, and the entry behind it."""

    error: TraceError
    stuck: Stuck | None = None
    entry: str | None = None


@dataclass(frozen=True, slots=True)
class Untraced:
    """A sharded parameter that no traced op used: nothing is known of it."""

    parameter: str
    entry: str


@dataclass(frozen=True, slots=True)
class Strided:
    """A row-split layer that is given a transposed shard, which the client cannot view as rows where it trains."""

    op: Op
    entry: str


@dataclass(frozen=True, slots=True)
class WrittenOutput:
    """An in-place op on what a style's hook made of a module's output: autograd refuses it where gradients are on."""

    op: Op
    module: str
    entry: str


@dataclass(frozen=True, slots=True)
class NoLookup:
    """A style for tables on a module that computes something else, by the client's distributed tensors; or uses what it looks up
    more than once (`twice`).
    """

    module: str
    entry: str
    twice: bool = False


@dataclass(frozen=True, slots=True)
class Unregistered:
    """A style that the installed Transformers does not have: it refuses the plan."""

    style: str
    entry: str


@dataclass(frozen=True, slots=True)
class Unlike:
    """A style that the installed Transformers has, and that is not modelled as that version does it, on this module."""

    module: str
    entry: str
    style: str
    why: str


Fault: TypeAlias = (
    IndivisibleError
    | UnloadableError
    | RankFails
    | Unreachable
    | Stuck
    | Untraced
    | Strided
    | WrittenOutput
    | GradientFault
    | Misplaced
    | NoLookup
    | Unregistered
    | Unlike
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was decided of one proposal; without faults it is right.

    `forward` are the faults of loading and of the forward, which hide those of the backward; `gradients` those of the backward;
    `loading` and `undecided` stand beside both. `ran` are the two programs, related; None where there was no rank's program.
    """

    assigned: Assigned
    ran: Propagation | None
    forward: tuple[Fault, ...] = ()
    gradients: tuple[Fault, ...] = ()
    loading: tuple[Misplaced, ...] = ()
    undecided: tuple[NoLookup | Unlike, ...] = ()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults, the first cause first."""
        return (*self.forward, *self.gradients, *self.loading, *self.undecided)


def judge(
    subject: Subject,
    styles: Mapping[str, str],
    degree: int,
    *,
    unfixed: Mapping[Source, int] | None = None,
    one_side: bool = False,
) -> Judgement:
    """Decide one proposal in Transformers' own reading.

    Args:
        subject: the model on meta with its single-device program.
        styles: the proposal; keys as the head model sees them.
        degree: the number of ranks, at least 2.
        unfixed: views, by source line, that leave one dim open (counted from the end): what a patch suggestion tries.
        one_side: the program is the other side of a branch on data, which need not read every parameter.
    """
    if unknown := tuple(Unregistered(style, key) for key, style in styles.items() if not _has(subject, style)):
        return Judgement(Assigned({}, {}), None, unknown)
    assigned = assign(subject.reference, styles, base_prefix=subject.prefix)
    opaque: tuple[NoLookup | Unlike, ...] = _unlike(subject, styles, assigned) or _without_lookup(
        subject.reference, assigned
    )
    if hidden := {entry.entry for entry in opaque}:
        styles = {key: style for key, style in styles.items() if not {key, key.rpartition(".")[0]} & hidden}
        assigned = assign(subject.reference, styles, base_prefix=subject.prefix)
    loading = tuple(misplaced(subject.model, assigned, degree))
    ran, forward = related_programs(subject, assigned, degree, unfixed=unfixed)
    if ran is not None and not forward and not one_side:
        forward = tuple(one for one in untraced(ran.local, assigned) if not _trained(subject, one.entry))
    gradients = backward_faults(subject, ran, assigned) if ran is not None and not forward else ()
    return Judgement(assigned, ran, forward, gradients, loading, opaque)


def related_programs(
    subject: Subject,
    assigned: Assigned,
    degree: int,
    *,
    distributed: bool = True,
    by_torch: bool = False,
    unfixed: Mapping[Source, int] | None = None,
) -> tuple[Propagation | None, tuple[Fault, ...]]:
    """The two programs of a layout, related, and the faults of loading and of the forward.

    `distributed`: the client keeps what it shards as distributed tensors, as Transformers does, which its hooks have to reach.
    `by_torch`: torch's own styles lay the parameters out, which take uneven parts in every version.
    """
    try:
        if distributed:
            if not by_torch:
                _check_even(subject, assigned, degree)
            check_initial(subject.model, assigned)
        local = local_program(
            subject.model, assigned, degree, script=subject.script, distributed=distributed, unfixed=unfixed
        )
    except (IndivisibleError, UnloadableError) as error:
        return None, (error,)
    except TraceError as error:
        return None, (_rank_fails(subject.graph, assigned, error, degree),)
    if distributed and (apart := unreachable(local, assigned)):
        return None, tuple(apart)
    ran = propagate(subject.graph, local, assigned, degree)
    return ran, ran.stuck


def _has(subject: Subject, style: str) -> bool:
    """Whether the runtime has a style: Transformers for its own models; one of packed blocks is for modules of any class."""
    return style in registered() or (subject.graph.any_module and is_packed_name(style) and style_of(style) is not None)


def alike_parts(model: nn.Module, assigned: Assigned) -> tuple[str, ...]:
    """The planned parameters whose parts the installed version takes to be of one size."""
    owners = ((name, name.rpartition(".")[0]) for name in assigned.parameters)
    return tuple(
        name
        for name, owner in owners
        if owner in assigned.modules and parts_alike(assigned.modules[owner][0].name, model.get_submodule(owner))
    )


def _check_even(subject: Subject, assigned: Assigned, degree: int) -> None:
    """`IndivisibleError` for a part that the installed version cannot lay out, because it takes all parts to be alike."""
    for name in alike_parts(subject.model, assigned):
        placement, entry = assigned.parameters[name]
        shape = subject.graph.values[subject.graph.parameters[name]].shape
        if isinstance(placement, Shard) and shape[placement.dim] % (placement.blocks * degree):
            raise IndivisibleError(name, entry, placement, shape, degree)


def _rank_fails(graph: Graph, assigned: Assigned, error: TraceError, degree: int) -> RankFails:
    if error.before is None:
        return RankFails(error)
    return RankFails(error, *explain_failure(graph, error.before, error.failed, assigned, degree))


def backward_faults(subject: Subject, ran: Propagation, assigned: Assigned) -> tuple[Fault, ...]:
    """What goes wrong in training of two programs that are related: writes that autograd refuses, and wrong gradients."""
    frozen = {name for name, value in subject.model.named_parameters() if not value.requires_grad}
    partial = tuple(fault for fault in gradient_faults(ran, assigned) if fault.parameter not in frozen)
    written = ((ran.local.ops[position], path) for position, path in ran.local.written)
    return (
        *(Strided(op, entry) for op, entry in strided(ran.local, assigned)),
        *(WrittenOutput(op, path, assigned.modules[path][1]) for op, path in written),
        *nearest(ran, partial),
    )


def untraced(local: Graph, assigned: Assigned) -> tuple[Untraced, ...]:
    """Sharded parameters under a pattern none of whose modules ran; one for each entry."""
    silent = {e: name for name, (_, e) in assigned.parameters.items() if generic(name) not in local.used_parameters}
    return tuple(Untraced(name, entry) for entry, name in silent.items())


def _trained(subject: Subject, entry: str) -> bool:
    """Whether what an entry shards is used in training, where it is judged, and not in the mode of the subject: a head that only
    the loss reads.
    """
    if subject.script is not None and subject.script.mode is RunMode.TRAINING:
        return False
    try:
        training = subject_in(subject.model, RunMode.TRAINING)
    except TraceError:
        return False
    used = training.graph.used_parameters if training is not None else frozenset[str]()
    return any(name == entry or name.startswith(f"{entry}.") for name in used)


def _unlike(subject: Subject, styles: Mapping[str, str], assigned: Assigned) -> tuple[Unlike, ...]:
    """Modules on which the installed version does something else with their style, one for each entry."""
    found: dict[str, Unlike] = {}
    cut = [name for name, (placement, _) in assigned.parameters.items() if isinstance(placement, Shard)]
    for path, (style, entry) in assigned.modules.items():
        below = any(name.startswith(f"{path}.") for name in cut) if style.name == "moe_tp_experts" else True
        if (
            entry not in found
            and style.name in STYLES
            and (why := differs(style.name, subject.model.get_submodule(path), sharded=below))
        ):
            found[entry] = Unlike(path, entry, style.name, why)
    for name, (_, entry) in assigned.parameters.items():
        owner = name.rpartition(".")[0]
        if entry in found or entry not in styles:
            continue
        if styles[entry] in STYLES and (why := lays_out_otherwise(styles[entry], subject.model.get_submodule(owner))):
            found[entry] = Unlike(owner, entry, styles[entry], why)
    return tuple(found.values())


def _without_lookup(graph: Graph, assigned: Assigned) -> tuple[NoLookup, ...]:
    """Modules with a lookup's style that compute something else: the client runs them on distributed tensors, which lay out
    results by rules of their own. A module that is never called, such as the shared holder of a tied table, runs nothing.
    """
    styled = {path: entry for path, (style, entry) in assigned.modules.items() if looks_up(style)}
    # A repeated layer has no ops of its own: the first of its kind stands for it.
    runs = {generic(op.module) for op in graph.ops} if styled else set()
    searched = {generic(op.module) for op in graph.ops if op.target.endswith("embedding")} if styled else set()
    none = tuple(NoLookup(path, entry) for path, entry in styled.items() if generic(path) in runs - searched)
    summed = {path for path, (style, _) in assigned.modules.items() if path in styled and style.after is After.REDUCE}
    twice = _used_twice(graph, {generic(path) for path in summed})
    return (*none, *(NoLookup(path, entry, twice=True) for path, entry in styled.items() if generic(path) in twice))


def _used_twice(graph: Graph, modules: set[str]) -> set[str]:
    """Which of these modules use what they look up, or what they make of it, in more than one op: the client's distributed tensor
    of rows that a rank may lack is summed over the ranks once, and raises the second time.
    """
    uses: dict[int, int] = {}
    twice = set()
    for op in graph.ops:
        if (module := generic(op.module)) not in modules:
            continue
        read = uses.keys() & set(op.inputs)
        uses |= {number: uses[number] + 1 for number in read}
        if any(uses[number] > 1 for number in read):
            twice.add(module)
        if read or op.target.endswith("embedding"):
            uses |= dict.fromkeys(op.outputs, 0)
    return twice
