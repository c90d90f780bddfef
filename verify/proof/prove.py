"""Level 1, the proof: seconds, one process, no weights, no process group."""

from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter

from torch import nn

from shardproof.planner.inputs.run_modes import RunMode
from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.findings import Finding, Place, Severity, Source, as_written
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import Subject, on_meta, on_the_other_side, other_modes, subject_in, subject_of
from shardproof.planner.tracing.trace import TraceError
from shardproof.planner.twins.twin import raises_on_one_device
from shardproof.verify.findings import pl104, tp210
from shardproof.verify.proof.expert_trial import try_experts
from shardproof.verify.proof.experts import check_experts
from shardproof.verify.proof.fixes import with_fix
from shardproof.verify.proof.pipeline import check_pp
from shardproof.verify.proof.plan_form import check_plan
from shardproof.verify.proof.tensor import check_tensor
from shardproof.verify.report.report import LevelResult


def prove(model: LoadedModel | str, plan: Plan | None = None, *, tp: int = 2, pp: int = 1, ep: int = 1) -> LevelResult:
    """Prove or refute a plan at one degree of each axis: placements for tensor parallelism, stages for pipelines.

    Args:
        model: a loaded model or a reference to one.
        plan: the plan under proof; by default the one that the model carries.
        tp: the tensor-parallel degree, at least 1.
        ep: the expert-parallel degree; experts lie on the tensor-parallel ranks. The expert plan's form is checked at
            any degree, and whether the experts divide where it is above 1.
        pp: the number of stages; above 1 the pipeline plan is checked, and every stage's program is compared with the
            whole program.

    Raises:
        ArgumentError: a degree is below 1.
        LoadError: the reference names no model.
    """
    if min(tp, ep, pp) < 1:
        raise ArgumentError(f"a degree is at least 1, got {min(tp, ep, pp)}.")
    started = perf_counter()
    loaded = load(model) if isinstance(model, str) else model
    built = on_meta(loaded)
    plan = plan if plan is not None else carried_plan(loaded, built)
    findings = check_plan(built, plan, tp)
    if ep > 1 and not plan.ep:
        findings += (pl104.no_expert_plan(ep),)
    if tp > 1 and not any(finding.severity is not Severity.WARNING for finding in findings):
        findings += _tensor_findings(loaded, built, plan, tp, ep)
    prefix = base_prefix(built)
    findings = tuple(as_written(finding, prefix) for finding in findings)
    if pp > 1:
        findings += tuple(found for found in stage_findings(loaded, built, plan, pp) if found not in findings)
    return LevelResult("proof", perf_counter() - started, findings)


def _tensor_findings(loaded: LoadedModel, built: nn.Module, plan: Plan, tp: int, ep: int) -> tuple[Finding, ...]:
    try:
        subject = subject_of(built)
    except TraceError as error:
        return (not_traced(error),)
    styles = plan.styles(subject.prefix)
    experts = expert_findings(loaded, subject, plan, ep)
    found = check_tensor(subject, styles, tp)
    if found:
        return (*with_fix(subject, styles, tp, found), *experts)
    found = _in_other_modes(loaded, subject, styles, tp)
    return (*(found or _on_other_sides(subject, styles, tp)), *experts)


FOLLOWED = 4
"""Branches on data that are followed to both sides, of each model; of the others one side is an assumption."""


def _on_other_sides(subject: Subject, styles: Mapping[str, str], tp: int) -> tuple[Finding, ...]:
    """Findings of the other sides of branches on data, of a plan that is right on the side that is traced."""
    seen: set[Source] = set()
    for one in (subject, *other_modes(subject.model)):
        for line in one.graph.branches:
            if line in seen or len(seen) == FOLLOWED:
                continue
            seen.add(line)
            try:
                other = on_the_other_side(subject.model, one, line)
            except TraceError:
                continue  # that side raises on a single device, or cannot be run on meta tensors: an assumption
            if wrong := check_tensor(other, styles, tp):
                return tuple(
                    replace(found, message=f"on the other side of the branch at {line}, {found.message}")
                    for found in wrong
                )
    return ()


def _in_other_modes(loaded: LoadedModel, subject: Subject, styles: Mapping[str, str], tp: int) -> tuple[Finding, ...]:
    """Findings of training and decoding, of a plan that is right in evaluation."""
    found: tuple[Finding, ...] = ()
    for mode in (RunMode.TRAINING, RunMode.DECODING):
        try:
            other = subject_in(subject.model, mode)
        except TraceError as error:
            if not raises_on_one_device(loaded, mode):
                place = Place(None, error.module or None, error.source)
                found += (tp210.mode_not_traced(mode.value, str(error), place),)
            continue
        wrong = check_tensor(other, styles, tp) if other is not None else ()
        if other is not None and wrong:
            told = tuple(replace(one, message=f"in {mode.value}, {one.message}") for one in wrong)
            return (*found, *with_fix(other, styles, tp, told))
    return found


def expert_findings(loaded: LoadedModel, subject: Subject, plan: Plan, ep: int) -> tuple[Finding, ...]:
    """Findings of the expert plan: its form, and at a degree above 1 what the experts give on ranks."""
    found = check_experts(subject.graph, plan, subject.prefix, ep)
    if found or ep == 1 or not plan.ep:
        return found
    return try_experts(loaded, plan, ep)


def stage_findings(loaded: LoadedModel, built: nn.Module, plan: Plan, pp: int) -> tuple[Finding, ...]:
    """Findings of the pipeline plan; where it has no errors, findings of the programs of its stages."""
    try:
        found = check_pp(built, subject_of(built).graph, plan)
        if any(finding.severity is not Severity.WARNING for finding in found):
            return found
        from shardproof.verify.proof.stages import check_programs
        from shardproof.verify.stages.case import Case

        return (*found, *check_programs(Case(loaded, plan, pp=pp)))
    except TraceError as error:
        return (not_traced(error),)


def not_traced(error: TraceError) -> Finding:
    """The finding of a single-device program that could not be recorded."""
    return tp210.not_traced(str(error), Place(None, error.module or None, error.source))
