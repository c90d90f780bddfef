"""Ask real ranks what a trainer does (level `train`)."""

import time
from collections.abc import Mapping

from shardproof.launch.ranks.confirm import incomplete, runner_for
from shardproof.launch.ranks.job import Nodes, surrounding
from shardproof.launch.ranks.runner import CaseResult
from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.findings import Finding
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import on_meta
from shardproof.planner.twins.twin import TwinError, twin
from shardproof.planner.weights.quantised import method_of
from shardproof.verify.findings import dy504, pl104, tp222
from shardproof.verify.report.report import LevelResult
from shardproof.verify.run.training.verdicts import answer_lines, training_findings
from shardproof.verify.run.verdicts import findings_of, written
from shardproof.verify.stages.case import Case


def confirm_training(
    model: LoadedModel | str,
    plan: Plan | None = None,
    *,
    tp: int = 2,
    ep: int = 1,
    timeout: float = 300.0,
    nodes: Nodes | None = None,
) -> LevelResult:
    """Ask `tp` real ranks of a twin what a trainer does, each question with an answer of its own.

    Clipping by norm, accumulation, steps of AdamW, mixed precision, dropout, checkpointing, `torch.compile`, saving and
    resuming are compared with one device. Where what trainers do by themselves fails, other ways are tried.

    Args:
        model: a loaded model or a reference to one.
        plan: the plan under test; by default the one that the model carries.
        tp: ranks on the tensor-parallel axis, at least 2.
        ep: ranks over which the experts are split: 1, or `tp`.
        timeout: seconds for all questions.
        nodes: the machines, where there are several; every one runs the same call.

    Raises:
        ArgumentError: the degrees are wrong or do not fit the job.
        LoadError: the reference names no model.
    """
    world = surrounding()
    if tp < 2 or ep not in (1, tp):
        raise ArgumentError(
            f"training is asked of 2 tensor-parallel ranks or more, with ep of 1 or tp: not tp {tp}, ep {ep}."
        )
    if world is not None and world.size != tp:
        raise ArgumentError(f"tp {tp} makes {tp} ranks, but this job has {world.size}.")
    began = time.monotonic()
    loaded = load(model) if isinstance(model, str) else model
    plan = plan if plan is not None else carried_plan(loaded, on_meta(loaded))
    if not (plan.tp or plan.head_tp or plan.ep):
        return LevelResult("train", time.monotonic() - began, (pl104.nothing_to_run("tensor"),))
    try:
        case = Case(twin(loaded, tp=tp), plan, tp, ep=ep, training=True)
    except TwinError as error:
        return LevelResult("train", time.monotonic() - began, (dy504.no_small_model(str(error)),))
    with runner_for(case, world, timeout, nodes) as runner:
        (case_result,) = runner.run((case,))
    findings, answers = training_result(case, case_result, timeout)
    if (method := method_of(loaded.config)) is not None:
        findings += (tp222.not_looked_at(method),)
    return LevelResult("train", time.monotonic() - began, findings, answers=answers)


def training_result(
    case: Case, case_result: CaseResult, timeout: float
) -> tuple[tuple[Finding, ...], Mapping[str, str]]:
    """The findings of a case that asks what a trainer does, and each question with its answer in a few words."""
    outcomes = case_result.outcomes
    if len(outcomes) < case.tp:
        return written(case, incomplete(case, case_result, timeout)), {}
    if any(outcome.failure for outcome in outcomes.values()):
        return written(case, findings_of(case, outcomes)), {}
    answers = outcomes[0].training
    styles = case.plan.styles(base_prefix(on_meta(case.loaded)))
    return written(case, training_findings(answers, styles)), answer_lines(answers)
