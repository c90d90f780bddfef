"""Infer the plan of a model, in one call."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from shardproof.planner.inference.experts import infer_ep
from shardproof.planner.inference.explanation.code_changes import find_patches
from shardproof.planner.inference.explanation.explain import explain, left_whole
from shardproof.planner.inference.pipeline import cut_nowhere, infer_pipeline
from shardproof.planner.inference.probe import Prober, prober
from shardproof.planner.inference.tensor import Inference, infer_tp, probe_degree
from shardproof.planner.ir.degrees import degrees_within
from shardproof.planner.ir.explanation import Explanation, LeftWhole
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import Plan, TpEntry, join
from shardproof.planner.judge import alike_parts
from shardproof.planner.loading.carried_plan import plan_owners, reads_config_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.propagation.assign import assign, sharded_share
from shardproof.planner.propagation.forward.propagate import propagate
from shardproof.planner.propagation.limits import limits
from shardproof.planner.tracing.programs import Subject, local_program, on_meta, other_modes, subject_of
from shardproof.planner.tracing.rank_program import IndivisibleError
from shardproof.planner.tracing.recorded_run import TraceError


@dataclass(frozen=True)
class Suggestion:
    """An inferred plan.

    `degrees` are the tensor-parallel degrees that the sizes allow (`verify.proof.degrees.legal_degrees` says what forbids the
    others). `sharded_fraction` is the share of parameter bytes that the plan shards, 0 to 1. `notes` are the assumptions of
    the trace. `explanation` is there if it was asked for. `owners` maps paths in the base model to the config classes of
    their entries. `left` are the parameters that the tensor-parallel plan does not shard, most elements first.
    """

    plan: Plan
    degrees: tuple[int, ...]
    sharded_fraction: float
    graph: Graph
    notes: tuple[str, ...] = ()
    explanation: Explanation | None = None
    owners: Mapping[str, str] = field(default_factory=dict)
    left: tuple[LeftWhole, ...] = ()


def suggest(model: LoadedModel | str, *, why: bool = False, tp: int | None = None) -> Suggestion:
    """Infer the plan of a model from its computation.

    Args:
        model: a loaded model, or a reference (a model type, a config.json, a checkpoint folder, a Hub id, `file.py:Class`).
        why: also explain the plan: groups, parameters that are not sharded, changes of the modeling code that would shard more.
        tp: a number of ranks at which the plan has to be right; groups that do not divide over them are left out. By default
            a plan for as many degrees as there are.

    Raises:
        LoadError: the reference names no model.
        TraceError: the model's forward cannot be run without data; says where it stopped.
    """
    loaded = load(model) if isinstance(model, str) else model
    subject = subject_of(on_meta(loaded))
    built, graph, prefix = subject.model, subject.graph, subject.prefix
    inference = _inference(subject, other_modes(subject.model), tp)
    pipeline, head_pipeline = infer_pipeline(built, graph)
    uncut = cut_nowhere(built, graph, pipeline)
    if uncut is not None:
        pipeline, head_pipeline = (), ()
    plan = replace(
        _split_by_owner(inference, prefix, in_config=reads_config_plan(built)), pp=pipeline, head_pp=head_pipeline
    )
    plan = _with_experts(plan, infer_ep(graph, prefix), prefix)
    legal = degrees(built, graph, plan, prefix, tp or probe_degree(inference.sizes or [2]))
    owners = {path: kind.__name__ for path, kind in plan_owners(built).items()}
    explanation = _explanation(subject, inference, plan) if why else None
    notes = graph.notes if uncut is None else (*graph.notes, f"there is no pipeline plan: {uncut}")
    left = left_whole(graph, assign(graph, plan.styles(prefix), base_prefix=prefix), plan.unplanned)
    return Suggestion(plan, legal, sharded_fraction(graph, plan, prefix), graph, notes, explanation, owners, left)


def _inference(subject: Subject, others: tuple[Subject, ...], tp: int | None) -> Inference:
    """The tensor-parallel plan, inferred in evaluation; where it turns out wrong in another mode, inferred in all of them."""
    inference = infer_tp(subject.graph, _at(tp, prober(subject)), subject.prefix)
    styles = {entry.pattern: entry.style for entry in inference.entries.values()}
    degree = tp or probe_degree(inference.sizes or [2])
    tried = [prober(other)(styles, degree) for other in others] if styles else []
    if all(found.right and not found.gradients for found in tried):
        return inference
    # What cannot be judged even without a plan says nothing of a plan; the proof says that it is not proved.
    others = tuple(o for o, found in zip(others, tried, strict=True) if found.right or prober(o)({}, degree).right)
    if not others:
        return inference
    return infer_tp(subject.graph, _at(tp, prober(subject, *others)), subject.prefix)


def _at(tp: int | None, probe: Prober) -> Prober:
    """A probe that asks one degree, where one is given."""
    return probe if tp is None else lambda styles, _: probe(styles, tp)


def _with_experts(plan: Plan, ep: tuple[TpEntry, ...], prefix: str) -> Plan:
    """The plan with its expert entries; the reason of a module that only the expert plan shards says so."""
    dispatched = {join(prefix, entry.pattern) for entry in ep}
    unplanned = {
        pattern: f"{reason}; the expert plan shards it" if pattern in dispatched else reason
        for pattern, reason in plan.unplanned.items()
    }
    return replace(plan, ep=ep, unplanned=unplanned)


def _explanation(subject: Subject, inference: Inference, plan: Plan) -> Explanation | None:
    if inference.groups is None:
        return None
    prefix = subject.prefix
    explained = explain(inference, plan.styles(prefix), plan.unplanned, prefix)
    return replace(explained, patches=find_patches(subject, inference))


def _split_by_owner(inference: Inference, prefix: str, *, in_config: bool) -> Plan:
    """Divide the entries between the base model's config, with keys relative to the base model, and the head class. All
    entries go to the head class if no plan is read from the config.
    """
    inside = prefix + "." if prefix else ""
    base = [entry for pattern, entry in inference.entries.items() if in_config and pattern.startswith(inside)]
    head = [entry for entry in inference.entries.values() if entry not in base]
    return Plan(
        tp=tuple(replace(entry, pattern=entry.pattern.removeprefix(inside)) for entry in base),
        head_tp=tuple(head),
        unplanned=inference.unplanned,
    )


def degrees(built: nn.Module, graph: Graph, plan: Plan, prefix: str, start: int) -> tuple[int, ...]:
    """Every degree that the sizes allow, from the plan's per-rank program at degree `start`; only 1 if that program is
    wrong.
    """
    if not (plan.tp or plan.head_tp):
        return (1,)
    assigned = assign(graph, plan.styles(prefix), base_prefix=prefix)
    try:
        ran = propagate(graph, local_program(built, assigned, start), assigned, start)
    except (IndivisibleError, TraceError):
        return (1,)
    return (1,) if ran.stuck else degrees_within(limits(ran, assigned, alike=alike_parts(built, assigned))).legal


def sharded_fraction(graph: Graph, plan: Plan, prefix: str) -> float:
    """The share of parameter bytes that a plan shards in Transformers, 0 to 1."""
    return sharded_share(graph, assign(graph, plan.styles(prefix), base_prefix=prefix))
