"""A suggestion whose parts are proved: the inference proposes, and what the proof refutes is left out, with the reason."""

from dataclasses import replace

from shardproof.planner.inference.explanation.explain import left_whole
from shardproof.planner.inference.suggest import Suggestion
from shardproof.planner.inference.suggest import suggest as infer
from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import common_parts, generic, join
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.propagation.assign import assign, sharded_share
from shardproof.planner.propagation.expert_dispatch import stacked
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.verify.proof.prove import expert_findings, prove, prove_stages
from shardproof.verify.report.report import LevelResult

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
    plan, notes, built = suggestion.plan, list(suggestion.notes), on_meta(loaded)
    if plan.pp:
        try:
            found = prove_stages(loaded, built, plan, STAGES).findings
        except ValueError as error:  # too few layers for so many stages, for instance
            found = ()
            notes.append(f"the pipeline plan was not proved: {error}")
        if wrong := _first_error(found):
            plan = replace(plan, pp=(), head_pp=())
            notes.append(f"there is no pipeline plan: {wrong.message}")
    if plan.ep and (degree := _least_degree(suggestion.graph)):
        wrong = _first_error(expert_findings(loaded, subject_of(built), plan, degree))
        if wrong is not None:
            plan = replace(plan, ep=())
            notes.append(f"there is no expert plan: {wrong.message}")
    return replace(suggestion, plan=plan, notes=tuple(notes))


def right_part(loaded: LoadedModel, suggestion: Suggestion, degree: int) -> tuple[Suggestion, LevelResult | None]:
    """What is left of a suggestion whose tensor-parallel plan is refuted, and its proof; None where no entry is left.

    The inference asks the judge of the proof, so nothing that it gives should be refuted. What is refuted all the same is not
    suggested: the entries nearest to each fault are left out, one after the other, and `notes` say which.
    """
    prefix = base_prefix(on_meta(loaded))
    plan, notes, proof = suggestion.plan, list(suggestion.notes), None
    while plan.tp or plan.head_tp:
        proof = prove(loaded, plan, tp=degree)
        wrong = _first_error(proof.findings)
        if wrong is None:
            break
        near = generic(wrong.place.module or join(prefix, wrong.place.entry or ""))
        shared = {key: common_parts(key, near) for key in plan.styles(prefix)}
        nearest = {key for key, count in shared.items() if count == max(shared.values())}
        plan = replace(
            plan,
            tp=tuple(entry for entry in plan.tp if join(prefix, entry.pattern) not in nearest),
            head_tp=tuple(entry for entry in plan.head_tp if entry.pattern not in nearest),
        )
        notes.append(f"{', '.join(sorted(nearest))}: left out, for with it the plan is refuted: {wrong.message}")
    assigned = assign(suggestion.graph, plan.styles(prefix), base_prefix=prefix)
    left = replace(
        suggestion,
        plan=plan,
        notes=tuple(notes),
        sharded_fraction=sharded_share(suggestion.graph, assigned),
        left=left_whole(suggestion.graph, assigned, plan.unplanned),
    )
    return left, proof if plan.tp or plan.head_tp else None


def _least_degree(graph: Graph) -> int:
    """The least number of ranks above one over which some experts divide evenly; 0 where there are none."""
    counts = {count for module in graph.modules if (count := stacked(graph, module))}
    return next((degree for degree in range(2, max(counts, default=0) + 1) if any(n % degree == 0 for n in counts)), 0)


def _first_error(findings: tuple[Finding, ...]) -> Finding | None:
    return next((finding for finding in findings if finding.severity is Severity.ERROR), None)
