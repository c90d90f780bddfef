"""Level 1, the proof: seconds, one process, no weights, no process group."""

from dataclasses import replace
from time import perf_counter

from torch import nn

from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.findings import Finding, Place, Severity, as_written
from shardproof.planner.ir.plan import Plan, join
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.propagation.assign import assign
from shardproof.planner.propagation.expert_placements import with_experts
from shardproof.planner.tracing.programs import Subject, on_meta, subject_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.transformers_facts.flex_attention import BY_DEFINITION, FLEX
from shardproof.planner.transformers_facts.styles import is_unmodelled
from shardproof.planner.transformers_facts.tied import refused_as_tied
from shardproof.planner.twins.loading import try_loading
from shardproof.planner.weights.block_layout import blocked_sides, is_modelled, refused_by_quantiser
from shardproof.planner.weights.quantised import method_of
from shardproof.verify.findings import pl104, tp202, tp210, tp221, tp222
from shardproof.verify.proof.expert_trial import try_experts
from shardproof.verify.proof.experts import check_experts
from shardproof.verify.proof.modes import check_modes
from shardproof.verify.proof.pipeline import check_pp
from shardproof.verify.proof.plan_form import NOT_READ, check_plan
from shardproof.verify.proof.stages import Programs, StagesVerdict
from shardproof.verify.report.report import LevelResult
from shardproof.verify.report.scope import Scope
from shardproof.verify.stages.case import Case

_ADAPTED_FIRST = (
    "the adapters are in the model before Transformers shards it: what PEFT does when it puts them onto a sharded model was not "
    "looked at"
)


def prove(
    model: LoadedModel | str, plan: Plan | None = None, *, tp: int = 2, pp: int = 1, ep: int = 1, strict: bool = False
) -> LevelResult:
    """Prove or refute a plan at one degree of each axis: placements for tensor parallelism, stages for pipelines.

    Args:
        model: a loaded model or a reference to one.
        plan: the plan under proof; by default the one that the model carries.
        tp: the tensor-parallel degree, at least 1.
        ep: the expert-parallel degree; experts lie on the tensor-parallel ranks. The expert plan's form is checked at
            any degree, and whether the experts divide where it is above 1.
        pp: the number of stages; above 1 the pipeline plan is checked, and every stage's program is compared with the
            whole program.
        strict: an assumption of the proof (`scope.assumptions` of the result) is undecided.

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
    findings, scope = check_plan(built, plan, tp), None
    if ep > 1 and not plan.ep:
        findings += (pl104.no_expert_plan(ep),)
    if max(tp, ep) > 1 and not any(finding.severity is not Severity.WARNING for finding in findings):
        more, scope = _tensor_findings(loaded, built, plan, tp, ep)
        findings += more
    more, scope = _loading_findings(loaded, scope)
    findings += more
    prefix = base_prefix(built)
    findings = tuple(as_written(finding, prefix) for finding in findings)
    if pp > 1:
        stages = prove_stages(loaded, built, plan, pp)
        findings += tuple(found for found in stages.findings if found not in findings)
        scope = scope if scope is not None else Scope()
        assumed = (*scope.assumptions, *(one for one in stages.assumptions if one not in scope.assumptions))
        scope = replace(scope, stages=stages.modes, assumptions=assumed)
    scope = scope and _with_asked(scope, loaded)
    if strict and scope is not None:
        findings += tuple(tp210.assumption(one) for one in scope.assumptions)
    return LevelResult("proof", perf_counter() - started, findings, scope=scope)


def _with_asked(scope: Scope, loaded: LoadedModel) -> Scope:
    """The scope with the implementations that were asked for, and what the trace takes them to compute."""
    assumed = (BY_DEFINITION,) if loaded.asked.attention == FLEX else ()
    return replace(scope, asked=loaded.asked.told(), assumptions=(*scope.assumptions, *assumed))


def _tensor_findings(
    loaded: LoadedModel, built: nn.Module, plan: Plan, tp: int, ep: int
) -> tuple[tuple[Finding, ...], Scope | None]:
    try:
        subject = subject_of(built)
    except TraceError as error:
        return (not_traced(error),), None
    if refused := refused_as_tied(built):
        return (tp202.tied_tables_not_found(type(built).__name__, refused),), None
    styles = plan.styles(subject.prefix)
    found, scope = check_modes(loaded, subject, styles, tp) if tp > 1 else ((), None)
    if (method := method_of(loaded.config)) is not None and scope is not None:
        scope = replace(
            scope, assumptions=(*scope.assumptions, f"a layer in {method} computes what its dequantised weights do")
        )
    return (*found, *quantised_findings(subject, plan, tp, ep), *expert_findings(loaded, subject, plan, ep)), scope


def _loading_findings(loaded: LoadedModel, scope: Scope | None) -> tuple[tuple[Finding, ...], Scope | None]:
    """What a trial of the client's loading found, and the scope with what could not be tried."""
    loading = try_loading(loaded)
    assumed: tuple[str, ...] = ()
    if loading.untried and not loading.lost:
        assumed += (f"loading gives what a checkpoint holds, which could not be tried ({loading.untried})",)
    if loaded.adapters:
        assumed += (_ADAPTED_FIRST,)
    found = (tp221.weights_are_lost(loading.lost),) if loading.lost else ()
    return found, scope and replace(scope, assumptions=(*scope.assumptions, *assumed))


def quantised_findings(subject: Subject, plan: Plan, tp: int, ep: int = 1) -> tuple[Finding, ...]:
    """Of a quantised checkpoint: that the client refuses to shard it, or the first block that a rank's part would cut; else,
    where the layout of its method is not known, that packed weights were not looked at. With `ep` above 1, experts lie as the
    expert plan says.
    """
    config = getattr(subject.model, "config", None)
    method = method_of(config)
    if method is None or tp == 1:
        return ()
    refused = refused_by_quantiser(config, tp)
    if refused:
        return (tp222.refused(method, refused),)
    if ep > 1 and plan.ep:
        assigned = with_experts(subject.graph, plan, subject.prefix)
    else:
        assigned = assign(subject.graph, plan.styles(subject.prefix), base_prefix=subject.prefix)
    for one in blocked_sides(subject.graph, assigned, subject.model):
        if one.is_cut(tp):
            return (tp222.block_is_cut(one.entry, one.module, side=one.side, held=one.count // tp, block=one.block),)
    known = refused is not None and is_modelled(subject.graph, assigned, subject.model, tp)
    return () if known else (tp222.not_looked_at(method),)


def expert_findings(loaded: LoadedModel, subject: Subject, plan: Plan, ep: int) -> tuple[Finding, ...]:
    """Findings of the expert plan: its form, and at a degree above 1 what the experts give on ranks."""
    unread = [entry for entry in plan.ep if is_unmodelled(entry.style)]
    if unread:
        place = Place(join(subject.prefix, unread[0].pattern))
        return (tp210.style_not_modelled(unread[0].style, place, NOT_READ),) if ep > 1 else ()
    found = check_experts(subject.graph, plan, subject.prefix, ep, tried=ep > 1)
    if found or ep == 1 or not plan.ep:
        return found
    return try_experts(loaded, plan, ep)


def prove_stages(loaded: LoadedModel, built: nn.Module, plan: Plan, pp: int) -> StagesVerdict:
    """The verdict on a pipeline plan; where it has no errors, on the programs of its stages.

    Raises:
        ValueError: the model has too few layers for so many stages.
    """
    try:
        found = check_pp(built, subject_of(built).graph, plan)
        if any(finding.severity is not Severity.WARNING for finding in found):
            return StagesVerdict(found)
        verdict = Programs(loaded).check(Case(loaded, plan, pp=pp))
        return replace(verdict, findings=(*found, *verdict.findings))
    except TraceError as error:
        return StagesVerdict((not_traced(error),))


def not_traced(error: TraceError) -> Finding:
    """The finding of a single-device program that could not be recorded."""
    return tp210.not_traced(str(error), Place(None, error.module or None, error.source))
