"""Run plans on real ranks and compare with the single-device model (level `run`)."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal, TypeAlias

from shardproof.launch.ranks.job import Nodes, World, surrounding
from shardproof.launch.ranks.job_ranks import JobRanks
from shardproof.launch.ranks.request import Start
from shardproof.launch.ranks.runner import CaseResult, Runner
from shardproof.launch.ranks.threads import ThreadRanks
from shardproof.launch.ranks.torchrun import TorchrunRanks
from shardproof.launch.result import UndecidedError
from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.findings import Finding, Severity, as_written
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.twins.loading import try_loading
from shardproof.planner.twins.quantised import quantised_twin
from shardproof.planner.twins.twin import TwinError, twin
from shardproof.planner.weights.block_layout import is_in_fp8_blocks
from shardproof.planner.weights.quantised import method_of
from shardproof.verify.diagnose import diagnosed
from shardproof.verify.findings import dy504, dy505, pl104, tp221, tp222
from shardproof.verify.proof.prove import quantised_findings
from shardproof.verify.report.report import LevelResult
from shardproof.verify.run.verdicts import findings_of, measures_of, written
from shardproof.verify.stages.case import Case

Engine: TypeAlias = Literal["ranks", "inprocess"]
RunCase: TypeAlias = Callable[[Case], CaseResult]


def confirm(
    model: LoadedModel | str,
    plan: Plan | None = None,
    *,
    tp: int = 2,
    pp: int = 1,
    ep: int = 1,
    weights: bool = False,
    timeout: float = 300.0,
    nodes: Nodes | None = None,
) -> LevelResult:
    """Run a plan on `tp * pp` real ranks and compare with the single-device model.

    Inside a torchrun or Slurm job the ranks of the job are used, and every rank gets the same result; else ranks are started
    here (with `nodes`, this machine's share of them) and ended before this returns. A refuted plan is run again with changes, to
    find a fix and whether the plan, the model or the client is at fault.

    Args:
        model: a loaded model or a reference to one.
        plan: the plan under test; by default the one that the model carries.
        tp: ranks on the tensor-parallel axis.
        pp: pipeline stages.
        ep: ranks over which the experts are split, on the same ranks as `tp`: 1, or `tp`.
        weights: run the real checkpoint in its own dtype, instead of a twin in float64.
        timeout: seconds for one case.
        nodes: the machines, where there are several; every one runs the same call.

    Raises:
        ArgumentError: the degrees are wrong or do not fit the job; or there is no checkpoint to run.
        LoadError: the reference names no model.
    """
    world = surrounding()
    _check_layout(tp, pp, ep, world)
    began = time.monotonic()
    loaded = load(model) if isinstance(model, str) else model
    plan = plan if plan is not None else carried_plan(loaded, on_meta(loaded))
    packed = () if weights else _packed_findings(loaded, plan, tp=tp, pp=pp, ep=ep)
    refuted = next((finding for finding in packed if finding.severity is Severity.ERROR), None)
    case = refuted or _case_of(loaded, plan, tp=tp, pp=pp, ep=ep, weights=weights, packed=bool(packed))
    if isinstance(case, Finding):
        return LevelResult("run", time.monotonic() - began, (case,))
    with runner_for(case, world, timeout, nodes) as runner:
        run_case = _one_by_one(runner)
        result = _result(case, run_case(case), timeout)
        findings = diagnosed(case, result.findings, lambda other: _findings_if_decided(other, run_case(other), timeout))
    return LevelResult("run", time.monotonic() - began, written(case, (*findings, *packed)), result.measures)


def _packed_findings(loaded: LoadedModel, plan: Plan, *, tp: int, pp: int, ep: int) -> tuple[Finding, ...]:
    """Of a quantised checkpoint, what forbids that its twin is quantised too."""
    method = method_of(loaded.config)
    if method is None:
        return ()
    if pp > 1:
        return (tp222.not_looked_at(method),)
    try:
        subject = subject_of(on_meta(loaded))
    except TraceError:
        return (tp222.not_looked_at(method),)
    found = quantised_findings(subject, plan, tp, ep)
    if not found and not is_in_fp8_blocks(loaded.config):
        return (tp222.plain_twin(method),)
    return tuple(as_written(finding, subject.prefix) for finding in found)


def _case_of(
    loaded: LoadedModel, plan: Plan, *, tp: int, pp: int, ep: int, weights: bool, packed: bool
) -> Case | Finding:
    """What is run, or the finding that tells why it cannot be. With `packed`, the twin of a quantised checkpoint is plain.

    Raises:
        ArgumentError: there is no checkpoint to run.
        UndecidedError: a package is missing.
    """
    if (tp > 1 and not (plan.tp or plan.head_tp)) or (ep > 1 and not plan.ep):
        return pl104.nothing_to_run("expert" if ep > 1 else "tensor")
    if weights and loaded.checkpoint is None:
        raise ArgumentError(f"{loaded.title} has no checkpoint to run; give a checkpoint folder, or run its twin.")
    if lost := try_loading(loaded).lost:
        return tp221.weights_are_lost(lost)
    if find_spec("accelerate") is None:
        raise UndecidedError(
            "a run needs the package accelerate, which is missing in this environment; "
            "`plan doctor` says what has to be installed."
        )
    try:
        small = loaded if weights else twin(loaded, tp=tp, pp=pp)
    except TwinError as error:
        return dy504.no_small_model(str(error))
    if is_in_fp8_blocks(loaded.config) and not (weights or packed):
        small = quantised_twin(loaded, small, tp=tp)
    return Case(small, plan, tp, pp, ep, weights=weights)


def confirm_cases(
    cases: tuple[Case, ...], *, timeout: float = 300.0, engine: Engine = "ranks", diagnose: bool = False
) -> tuple[LevelResult, ...]:
    """Several cases of the same number of ranks, in one warm group: each case has its own process group in it.

    `timeout` is in seconds, for one case. A case that ends the ranks (one killed, one that does not answer) costs a new
    start for the cases after it. With `diagnose`, what is refuted is run again, as by `confirm`.

    With `engine="inprocess"` the ranks are threads of this process: quicker, for cases of twins on the CPU.
    """
    if not cases:
        return ()
    ranks = cases[0].tp * cases[0].pp
    runner: Runner[Case, CaseResult]
    runner = ThreadRanks(ranks, timeout) if engine == "inprocess" else TorchrunRanks(Start(ranks, timeout))
    with runner:
        ended = zip(cases, runner.run(cases), strict=True)
        results = [_result(case, case_result, timeout) for case, case_result in ended]
        if diagnose:
            run_case = _one_by_one(runner)
            results = [_diagnosed(case, result, run_case, timeout) for case, result in zip(cases, results, strict=True)]
    return tuple(_written(case, result) for case, result in zip(cases, results, strict=True))


def _written(case: Case, result: LevelResult) -> LevelResult:
    """The result with its findings in the names of the plan's entries."""
    return LevelResult(result.level, result.seconds, written(case, result.findings), result.measures)


def _diagnosed(case: Case, result: LevelResult, run_case: RunCase, timeout: float) -> LevelResult:
    """The result after the plans that `diagnosed` tries for a fix were run as well."""
    began = time.monotonic()
    findings = diagnosed(case, result.findings, lambda other: _findings_if_decided(other, run_case(other), timeout))
    return LevelResult("run", result.seconds + time.monotonic() - began, findings, result.measures)


def runner_for(case: Case, world: World | None, timeout: float, nodes: Nodes | None) -> Runner[Case, CaseResult]:
    """The ranks of the job around this process, or ranks that are started here."""
    if world is not None:
        return JobRanks(world, timeout)
    return TorchrunRanks(Start(case.tp * case.pp, timeout, nodes or Nodes()))


def _one_by_one(runner: Runner[Case, CaseResult]) -> RunCase:
    def run_case(case: Case) -> CaseResult:
        (case_result,) = runner.run((case,))
        return case_result

    return run_case


def _check_layout(tp: int, pp: int, ep: int, world: World | None) -> None:
    if tp < 1 or pp < 1:
        raise ArgumentError(f"tp and pp must be at least 1, not {tp} and {pp}.")
    if tp * pp < 2:
        raise ArgumentError("A run needs at least 2 ranks: give tp or pp of 2 or more.")
    if ep not in (1, tp) or (ep > 1 and pp > 1):
        raise ArgumentError(f"ep must be 1 or tp ({tp}), without stages: the experts lie on the tensor-parallel ranks.")
    if world is not None and tp * pp != world.size:
        raise ArgumentError(f"tp {tp} x pp {pp} makes {tp * pp} ranks, but this job has {world.size}.")


def _result(case: Case, case_result: CaseResult, timeout: float) -> LevelResult:
    if len(case_result.outcomes) == case.tp * case.pp:
        measures = measures_of(case, case_result.outcomes)
        return LevelResult("run", case_result.seconds, findings_of(case, case_result.outcomes), measures)
    return LevelResult("run", case_result.seconds, incomplete(case, case_result, timeout))


def _findings_if_decided(case: Case, case_result: CaseResult, timeout: float) -> tuple[Finding, ...] | None:
    """The findings of one case, or None where it was not decided."""
    findings = _result(case, case_result, timeout).findings
    return None if any(finding.severity is Severity.UNDECIDED for finding in findings) else findings


def _allowed(case_result: CaseResult, timeout: float) -> str:
    """The time limit in words; where no rank answered, with the time that the ranks had to start."""
    return (
        f"{timeout:g} s"
        if case_result.outcomes or case_result.seconds < 2 * timeout
        else f"{case_result.seconds:.0f} s"
    )


def incomplete(case: Case, case_result: CaseResult, timeout: float) -> tuple[Finding, ...]:
    """Not every rank answered: a rank's own exception is the first cause, else its death, else the time."""
    outcomes = case_result.outcomes
    if case_result.apart:
        return (dy504.never_met(case_result.apart),)
    if not outcomes and case_result.death is None and not case_result.timed_out:
        return (dy504.no_rank_ran(case_result.launcher_error),)
    failed = {rank: outcome for rank, outcome in outcomes.items() if outcome.failure and not outcome.failure.heard_of}
    if failed:
        return findings_of(case, failed)
    if case_result.death is not None and not case_result.timed_out and case_result.death.rank not in outcomes:
        return (dy504.rank_died(str(case_result.death), case_result.death.words),)
    silent = ", ".join(str(rank) for rank in range(case.tp * case.pp) if rank not in outcomes)
    return (dy505.no_answer(silent, _allowed(case_result, timeout)),)
