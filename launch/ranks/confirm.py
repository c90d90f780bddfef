"""Level 2 from Python: real ranks against the single-device model."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, TypeAlias

from shardproof.launch.ranks.job import Nodes
from shardproof.launch.ranks.rank import Seat, World, adopt, surrounding
from shardproof.launch.ranks.request import Start
from shardproof.launch.ranks.torchrun import Answer, Ranks
from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import on_meta
from shardproof.planner.twins.twin import TwinError, twin
from shardproof.verify.diagnose import diagnosed
from shardproof.verify.findings import dy504, dy505, pl104
from shardproof.verify.report.report import LevelResult
from shardproof.verify.run.inprocess import InProcess
from shardproof.verify.run.outcome import Outcome
from shardproof.verify.run.verdicts import findings_of, measures_of, written
from shardproof.verify.stages.case import Case

Ask = Callable[[Case], Answer]
Engine: TypeAlias = Literal["ranks", "inprocess"]


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

    Inside a torchrun or Slurm job its ranks are used, and every rank gets the same result; else ranks are started
    here (with `nodes`, this machine's share of them) and ended before this returns. A refuted plan is run again, for a
    fix and for whose fault it is.

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
        ArgumentError: the layout is no layout, or not that of the job; or there is no checkpoint to run.
        LoadError: the reference names no model.
    """
    world = surrounding()
    _check_layout(tp, pp, ep, world)
    began = time.monotonic()
    loaded = load(model) if isinstance(model, str) else model
    plan = plan if plan is not None else carried_plan(loaded, on_meta(loaded))
    if (tp > 1 and not (plan.tp or plan.head_tp)) or (ep > 1 and not plan.ep):
        return LevelResult("run", time.monotonic() - began, (pl104.nothing_to_run("expert" if ep > 1 else "tensor"),))
    if weights and loaded.checkpoint is None:
        raise ArgumentError(f"{loaded.title} has no checkpoint to run; give a checkpoint folder, or run its twin.")
    try:
        case = Case(loaded if weights else twin(loaded, tp=tp, pp=pp), plan, tp, pp, ep, weights=weights)
    except TwinError as error:
        finding = dy504.no_small_model(str(error))
        return LevelResult("run", time.monotonic() - began, (finding,))
    with _answering(case, world, timeout, nodes) as ask:
        result = _result(case, ask(case), timeout)
        findings = diagnosed(case, result.findings, lambda other: _decided(other, ask(other), timeout))
    return LevelResult("run", time.monotonic() - began, written(case, findings), result.measures)


def confirm_cases(
    cases: tuple[Case, ...], *, timeout: float = 300.0, engine: Engine = "ranks", diagnose: bool = False
) -> tuple[LevelResult, ...]:
    """Several cases of the same number of ranks, in one warm group: each case has its own process group in it.

    `timeout` is in seconds, for one case. A case that ends the ranks (one killed, one that never answers) costs a new
    start for the cases after it. With `diagnose`, what is refuted is run again, as by `confirm`.

    With `engine="inprocess"` the ranks are threads of this process: quicker, for cases of twins on the CPU.
    """
    if not cases:
        return ()
    if engine == "inprocess":
        return tuple(_written(case, result) for case, result in zip(cases, _in_process(cases, timeout), strict=True))
    results: list[LevelResult] = []
    with Ranks(Start(cases[0].tp * cases[0].pp, timeout)) as ranks:
        ask = _asking(ranks)
        while len(results) < len(cases):
            for case, answer in zip(cases[len(results) :], ranks.ask(cases[len(results) :]), strict=False):
                result = _result(case, answer, timeout)
                results.append(result)
        if diagnose:
            results = [_diagnosed(case, result, ask, timeout) for case, result in zip(cases, results, strict=True)]
    return tuple(_written(case, result) for case, result in zip(cases, results, strict=True))


def _written(case: Case, result: LevelResult) -> LevelResult:
    return LevelResult(result.level, result.seconds, written(case, result.findings), result.measures)


def _in_process(cases: tuple[Case, ...], timeout: float) -> list[LevelResult]:
    """One after the other; ranks that did not answer in time are left behind, and new ones go on."""
    results: list[LevelResult] = []
    while len(results) < len(cases):
        with InProcess(cases[0].tp * cases[0].pp) as ranks, suppress(TimeoutError):
            for case in cases[len(results) :]:
                began = time.monotonic()
                results.append(_result(case, Answer({}, timeout, timed_out=True), timeout))
                outcomes = ranks.check(case, timeout=timeout)
                results[-1] = _result(case, Answer(outcomes, time.monotonic() - began), timeout)
    return results


def _diagnosed(case: Case, result: LevelResult, ask: Ask, timeout: float) -> LevelResult:
    began = time.monotonic()
    findings = diagnosed(case, result.findings, lambda other: _decided(other, ask(other), timeout))
    return LevelResult("run", result.seconds + time.monotonic() - began, findings, result.measures)


@contextmanager
def _answering(case: Case, world: World | None, timeout: float, nodes: Nodes | None) -> Iterator[Ask]:
    """What answers one case at a time: the ranks of the job around, or ranks that are started here."""
    if world is not None:
        yield _seated(world, timeout)
        return
    start = Start(case.tp * case.pp, timeout, nodes or Nodes())
    with Ranks(start) as ranks:
        yield _asking(ranks)


def _asking(ranks: Ranks) -> Ask:
    return lambda case: next(iter(list(ranks.ask((case,)))))


def _seated(world: World, timeout: float) -> Ask:
    """Every rank of the job asks and answers at once, and all hear the same. After a rank was lost, none answers."""
    adopt(world)
    seat = Seat(world, timeout=timeout)
    number = 0
    kept = True

    def ask(case: Case) -> Answer:
        nonlocal number, kept
        began = time.monotonic()
        outcomes, kept = seat.answer(case, number, heard=_unheard) if kept else ({}, False)
        number += 1
        lost = len(outcomes) < world.size
        return Answer(outcomes, time.monotonic() - began, timed_out=lost, kept=kept)

    return ask


def _unheard(_: Outcome) -> None:
    """In somebody else's job the other ranks hear an outcome through the store, and nobody else needs it."""


def _check_layout(tp: int, pp: int, ep: int, world: World | None) -> None:
    if tp < 1 or pp < 1:
        raise ArgumentError(f"tp and pp must be at least 1, not {tp} and {pp}.")
    if tp * pp < 2:
        raise ArgumentError("A run needs at least 2 ranks: give tp or pp of 2 or more.")
    if ep not in (1, tp) or (ep > 1 and pp > 1):
        raise ArgumentError(f"ep must be 1 or tp ({tp}), without stages: the experts lie on the tensor-parallel ranks.")
    if world is not None and tp * pp != world.size:
        raise ArgumentError(f"tp {tp} x pp {pp} makes {tp * pp} ranks, but this job has {world.size}.")


def _result(case: Case, answer: Answer, timeout: float) -> LevelResult:
    if len(answer.outcomes) == case.tp * case.pp:
        measures = measures_of(case, answer.outcomes)
        return LevelResult("run", answer.seconds, findings_of(case, answer.outcomes), measures)
    return LevelResult("run", answer.seconds, _incomplete(case, answer, timeout))


def _decided(case: Case, answer: Answer, timeout: float) -> tuple[Finding, ...] | None:
    """The findings of one case, or None where it was not decided."""
    findings = _result(case, answer, timeout).findings
    return None if any(finding.severity is Severity.UNDECIDED for finding in findings) else findings


def _allowed(answer: Answer, timeout: float) -> str:
    """The limit; of ranks that never came, what was waited for them to start too."""
    return f"{timeout:g} s" if answer.outcomes or answer.seconds < 2 * timeout else f"{answer.seconds:.0f} s"


def _incomplete(case: Case, answer: Answer, timeout: float) -> tuple[Finding, ...]:
    """Not every rank answered: a rank's own exception is the first cause, else its death, else the time."""
    outcomes = answer.outcomes
    if not outcomes and answer.death is None and not answer.timed_out:
        return (dy504.no_rank_ran(answer.complaint),)
    failed = {rank: outcome for rank, outcome in outcomes.items() if outcome.failure and not outcome.failure.heard_of}
    if failed:
        return findings_of(case, failed)
    if answer.death is not None and not answer.timed_out and answer.death.rank not in outcomes:
        return (dy504.rank_died(str(answer.death), answer.death.words),)
    silent = ", ".join(str(rank) for rank in range(case.tp * case.pp) if rank not in outcomes)
    return (dy505.no_answer(silent, _allowed(answer, timeout)),)
