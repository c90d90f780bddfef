"""The tensor-parallel proof in every mode in which clients run the model, and what it covers.

Evaluation comes first. Where the plan is right there, training, decoding and eager attention are asked, and the other sides of
branches on data. A mode that cannot be traced is not proved, unless a small copy of the model raises in it on one
device by itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from shardproof.planner.inputs.run_modes import RunMode, has_unknown_cache
from shardproof.planner.ir.dataflow import buffers_left, buffers_read
from shardproof.planner.ir.findings import Finding, Place, Source
from shardproof.planner.ir.placement import Replicate, Unknown
from shardproof.planner.ir.plan import generic
from shardproof.planner.judge import related_programs
from shardproof.planner.loading.implementations import kernel_of_experts
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.propagation.assign import assign
from shardproof.planner.tracing.programs import Subject, after_another, on_the_other_side, other_modes, subject_in
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.twins.twin import raises_on_one_device
from shardproof.verify.findings import tp210
from shardproof.verify.proof.fixes import with_fix
from shardproof.verify.proof.tensor import check_tensor
from shardproof.verify.report.scope import Scope

FOLLOWED = 4
"""Branches on data that are followed to both sides, of each model; of the others one side is an assumption."""


@dataclass
class _Coverage:
    """What was asked so far."""

    modes: list[str] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    assumptions: dict[str, None] = field(default_factory=dict)


def check_modes(
    loaded: LoadedModel, subject: Subject, styles: Mapping[str, str], tp: int
) -> tuple[tuple[Finding, ...], Scope]:
    """Findings of one plan in every mode, the first mode that has any, and what was looked at.

    Args:
        loaded: the model.
        subject: the model on meta in evaluation.
        styles: the plan; keys as the head model sees them.
        tp: the number of ranks, at least 2.
    """
    asked = _Coverage()
    asked.modes.append(RunMode.EVALUATION.value)
    found = with_fix(subject, styles, tp, check_tensor(subject, styles, tp))
    found = found or _in_other_modes(loaded, subject, styles, tp, asked)
    found = found or _on_other_sides(subject, styles, tp, asked) or _left_for_later(subject, styles, tp)
    found = found or _after_another_forward(subject, styles, tp)
    return found, _scope(subject, asked)


UNTOLD = Unknown("the ranks' program does not say")
NO_CACHE = "nobody runs the model in decoding: its forward takes or returns no cache"


def not_asked(loaded: LoadedModel, mode: RunMode, error: TraceError) -> Finding | str:
    """What a mode that cannot be traced means: undecided, or an assumption where the model raises in it on one device too."""
    if raises_on_one_device(loaded, mode):
        return f"nobody runs the model in {mode.value}: it raises there on one device"
    return tp210.mode_not_traced(mode.value, str(error), Place(None, error.module or None, error.source))


def _in_other_modes(
    loaded: LoadedModel, subject: Subject, styles: Mapping[str, str], tp: int, asked: _Coverage
) -> tuple[Finding, ...]:
    untraced: tuple[Finding, ...] = ()
    for mode in (RunMode.TRAINING, RunMode.DECODING, RunMode.EAGER):
        try:
            other = subject_in(subject.model, mode)
        except TraceError as error:
            match not_asked(loaded, mode, error):
                case str() as assumption:
                    asked.assumptions[assumption] = None
                case finding:
                    untraced += (finding,)
            continue
        if other is None:
            if mode is RunMode.DECODING and has_unknown_cache(subject.model):
                untraced += (tp210.decoding_not_asked(),)
            elif mode is RunMode.DECODING:
                asked.assumptions[NO_CACHE] = None
            continue
        asked.modes.append(mode.value)
        if wrong := check_tensor(other, styles, tp):
            told = tuple(replace(one, message=f"in {mode.value}, {one.message}") for one in wrong)
            return (*untraced, *with_fix(other, styles, tp, told))
    return untraced


def _on_other_sides(subject: Subject, styles: Mapping[str, str], tp: int, asked: _Coverage) -> tuple[Finding, ...]:
    for one, line in _branches(subject):
        if len(asked.branches) == FOLLOWED:
            asked.assumptions[f"{line}: the branch on data takes the side that was traced"] = None
            continue
        try:
            other = on_the_other_side(subject.model, one, line)
        except TraceError:
            asked.assumptions[f"{line}: the branch on data takes the side that was traced; the other one cannot be"] = (
                None
            )
            continue
        asked.branches.append(str(line))
        if wrong := check_tensor(other, styles, tp, one_side=True):
            where = f"on the other side of the branch at {line}"
            return tuple(replace(found, message=f"{where}, {found.message}") for found in wrong)
    return ()


def _left_for_later(subject: Subject, styles: Mapping[str, str], tp: int) -> tuple[Finding, ...]:
    """What a forward leaves in a buffer that some forward reads (a statistic of training, used in evaluation) has to be whole."""
    programs = (subject, *other_modes(subject.model))
    leaving = [(one, written) for one in programs if (written := buffers_left(one.graph))]
    read = {generic(name) for one in programs if leaving for name in buffers_read(one.graph)}
    for one, written in leaving:
        left = [name for name in written if generic(name) in read]
        if not left:
            continue
        ran, _ = related_programs(one, assign(one.reference, styles, base_prefix=one.prefix), tp)
        numbers = buffers_left(ran.local) if ran is not None else {}
        for name in left:
            placement = ran.placements.get(numbers.get(name, -1), UNTOLD) if ran is not None else UNTOLD
            if not isinstance(placement, Replicate):
                return (
                    tp210.left_in_a_buffer(
                        name, _mode(one).value, str(placement), Place(module=name.rpartition(".")[0])
                    ),
                )
    return ()


def _after_another_forward(subject: Subject, styles: Mapping[str, str], tp: int) -> tuple[Finding, ...]:
    """What a forward leaves in attributes (a running mean, a number of calls) is there in the next, which has to be right too."""
    programs = [one for one in (subject, *other_modes(subject.model)) if _mode(one) is not RunMode.DECODING]
    for first in (_mode(one) for one in programs if one.graph.leaves):
        for one in programs:
            when = f"{_mode(one).value} after a forward in {first.value}"
            try:
                again = after_another(subject.model, one, first)
            except TraceError as error:
                return (tp210.mode_not_traced(when, str(error), Place(None, error.module or None, error.source)),)
            if wrong := check_tensor(again, styles, tp):
                return tuple(replace(found, message=f"in {when}, {found.message}") for found in wrong)
    return ()


def _mode(subject: Subject) -> RunMode:
    return subject.script.mode if subject.script is not None else RunMode.EVALUATION


def _branches(subject: Subject) -> Iterator[tuple[Subject, Source]]:
    """Every line that branches on data, with the first mode that runs it."""
    seen: set[Source] = set()
    for one in (subject, *other_modes(subject.model)):
        for line in one.graph.branches:
            if line not in seen:
                seen.add(line)
                yield one, line


def _scope(subject: Subject, asked: _Coverage) -> Scope:
    programs = (subject, *other_modes(subject.model))
    notes = dict.fromkeys(note for program in programs for note in program.graph.notes)
    for program in programs:
        if program.script is not None and program.script.lacks:
            missing = " and ".join(program.script.lacks)
            notes[f"{program.script.mode.value} is without {missing}, with which the forward cannot be traced"] = None
    ran = {op.module for op in subject.graph.ops}
    same = tuple(module.path for module in subject.graph.modules if module.repeats is not None)
    stacks = {path.rpartition(".")[0] for path in same}
    layers = tuple(
        module.path
        for module in subject.graph.modules
        if module.path.rpartition(".")[0] in stacks and any(f"{one}.".startswith(f"{module.path}.") for one in ran)
    )
    traced = tuple(path for path in layers if path not in same)
    if kernel := kernel_of_experts(subject.model):
        notes[
            f"experts by {kernel} compute what the code of the modeling file does (--experts {kernel} proves that one)"
        ] = None
    return Scope(tuple(asked.modes), tuple(asked.branches), traced, same, (*notes, *asked.assumptions))
