"""A suggestion whose parts are proved: the inference proposes, and what the proof refutes is left out, with the reason."""

from dataclasses import replace

from shardproof.planner.inference.suggest import Suggestion
from shardproof.planner.inference.suggest import suggest as infer
from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.propagation.expert_dispatch import stacked
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.verify.proof.prove import expert_findings, prove_stages

STAGES = 2
"""Stages of the proof of a suggested pipeline."""


def suggest(model: LoadedModel | str, *, why: bool = False, tp: int | None = None) -> Suggestion:
    """Infer a plan, and leave out its pipeline or its expert part where the proof refutes that; `notes` then say why.

    With `tp`, the plan is one that is right at so many ranks.

    Raises:
        LoadError: the reference names no model.
        TraceError: the model's forward cannot be run without data.
    """
    loaded = load(model) if isinstance(model, str) else model
    suggestion = infer(loaded, why=why, tp=tp)
    plan, notes = suggestion.plan, list(suggestion.notes)
    if plan.pp:
        try:
            found = prove_stages(loaded, on_meta(loaded), plan, STAGES).findings
        except ValueError as error:  # too few layers for so many stages, for instance
            found = ()
            notes.append(f"the pipeline plan was not proved: {error}")
        if wrong := _first_error(found):
            plan = replace(plan, pp=(), head_pp=())
            notes.append(f"there is no pipeline plan: {wrong.message}")
    if plan.ep and (degree := _least_degree(loaded)) and (wrong := _first_error(_of_experts(loaded, plan, degree))):
        plan = replace(plan, ep=())
        notes.append(f"there is no expert plan: {wrong.message}")
    return replace(suggestion, plan=plan, notes=tuple(notes))


def _of_experts(loaded: LoadedModel, plan: Plan, degree: int) -> tuple[Finding, ...]:
    return expert_findings(loaded, subject_of(on_meta(loaded)), plan, degree)


def _least_degree(loaded: LoadedModel) -> int:
    """The least number of ranks above one over which some experts divide evenly; 0 where there are none."""
    graph = subject_of(on_meta(loaded)).graph
    counts = {count for module in graph.modules if (count := stacked(graph, module))}
    return next((degree for degree in range(2, max(counts, default=0) + 1) if any(n % degree == 0 for n in counts)), 0)


def _first_error(findings: tuple[Finding, ...]) -> Finding | None:
    return next((finding for finding in findings if finding.severity is Severity.ERROR), None)
