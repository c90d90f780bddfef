"""Level 2 from Python: real ranks against the single-device model."""

import time
from contextlib import suppress
from typing import Literal, TypeAlias

from launch.ranks import Seat, World, adopt, surrounding
from launch.request import Request
from launch.torchrun import Run, run_cases
from planner.frontend.load import Loaded, load
from planner.frontend.twin import TwinError, twin
from planner.ir.findings import Fault, Finding, Place, Severity
from planner.ir.plan import Plan
from verify.dynamic.cases import Case
from verify.dynamic.inprocess import InProcess
from verify.dynamic.outcome import Outcome
from verify.dynamic.verdicts import findings_of, measures_of
from verify.report import LevelResult


def confirm(
    loaded_or_reference: Loaded | str, plan: Plan, *, tp: int = 1, pp: int = 1, timeout: float = 300.0
) -> LevelResult:
    """Run a plan on `tp * pp` real ranks and compare with the single-device model, on a twin in float64.

    Inside a torchrun or Slurm job its ranks are used, and every rank gets the same result; else ranks are started
    here and
    ended before this returns. `timeout` is in seconds. `ValueError` where the layout is no layout, or not that of
    the job.
    """
    world = surrounding()
    _check_layout(tp, pp, world)
    began = time.monotonic()
    if tp > 1 and not (plan.tp or plan.head_tp):
        return _result(began, (_nothing_planned(),))
    loaded = load(loaded_or_reference) if isinstance(loaded_or_reference, str) else loaded_or_reference
    try:
        case = Case(twin(loaded, tp=tp, pp=pp), plan, tp, pp)
    except TwinError as error:
        return _result(began, (_undecided("DY504", str(error), "no model that is small enough to run"),))
    if world is not None:
        return _in_job(case, world, began, timeout)
    return confirm_cases((case,), timeout=timeout)[0]


Engine: TypeAlias = Literal["ranks", "inprocess"]


def confirm_cases(
    cases: tuple[Case, ...], *, timeout: float = 300.0, engine: Engine = "ranks"
) -> tuple[LevelResult, ...]:
    """Several cases of the same number of ranks, in one start: the ranks stay up, each case has its own process group.

    With `engine="inprocess"` the ranks are threads of this process: quicker, for tensor-parallel cases of twins on the CPU.

    `timeout` is in seconds, for one case. A case that ends the ranks (one killed, one that never answers) costs a new
    start for the cases after it.
    """
    if engine == "inprocess":
        return _in_process(cases, timeout)
    results: list[LevelResult] = []
    while len(results) < len(cases):
        began = time.monotonic()
        left = cases[len(results) :]
        ranks = left[0].tp * left[0].pp
        run = run_cases(Request(left, ranks, timeout), limit=timeout * len(left))
        whole = [outcomes for outcomes in run.outcomes if len(outcomes) == ranks]
        seconds = (time.monotonic() - began) / max(len(whole), 1)
        for case, outcomes in zip(left, whole, strict=False):
            results.append(LevelResult("run", seconds, findings_of(case, outcomes), measures_of(outcomes)))
        if len(whole) < len(left):
            results.append(LevelResult("run", seconds, _incomplete(left[len(whole)], run, len(whole), timeout)))
    return tuple(results)


def _in_process(cases: tuple[Case, ...], timeout: float) -> tuple[LevelResult, ...]:
    """One after the other; ranks that did not answer in time are left behind, and new ones go on."""
    results: list[LevelResult] = []
    while len(results) < len(cases):
        with InProcess(cases[0].tp) as ranks, suppress(TimeoutError):
            for case in cases[len(results) :]:
                began = time.monotonic()
                results.append(_result(began, _missing(case, {}, None, timed_out=True, timeout=timeout)))
                outcomes = ranks.check(case, timeout=timeout)
                seconds = time.monotonic() - began
                results[-1] = LevelResult("run", seconds, findings_of(case, outcomes), measures_of(outcomes))
    return tuple(results)


def _in_job(case: Case, world: World, began: float, timeout: float) -> LevelResult:
    adopt(world)
    seat = Seat(world, timeout=timeout)
    outcomes = seat.answer(case, 0, heard=_unheard)
    if len(outcomes) < world.size:
        return _result(began, _missing(case, outcomes, None, timed_out=True, timeout=timeout))
    return LevelResult("run", time.monotonic() - began, findings_of(case, outcomes), measures_of(outcomes))


def _unheard(_: Outcome) -> None:
    """In somebody else's job the other ranks hear an outcome through the store, and nobody else needs it."""


def _check_layout(tp: int, pp: int, world: World | None) -> None:
    if tp < 1 or pp < 1:
        raise ValueError(f"tp and pp must be at least 1, not {tp} and {pp}.")
    if tp * pp < 2:
        raise ValueError("A run needs at least 2 ranks: give tp or pp of 2 or more.")
    if world is not None and tp * pp != world.size:
        raise ValueError(f"tp {tp} x pp {pp} makes {tp * pp} ranks, but this job has {world.size}.")


def _incomplete(case: Case, run: Run, number: int, timeout: float) -> tuple[Finding, ...]:
    death = str(run.death) if run.death else None
    outcomes = run.outcomes[number]
    if not outcomes and death is None and not run.timed_out:
        return (_undecided("DY504", f"the launcher ended before any rank answered: {run.complaint}", "no rank ran"),)
    return _missing(case, outcomes, death, timed_out=run.timed_out, timeout=timeout)


def _missing(
    case: Case, outcomes: dict[int, Outcome], death: str | None, *, timed_out: bool, timeout: float
) -> tuple[Finding, ...]:
    """Not every rank answered: a rank's own exception is the first cause, else its death, else the time."""
    failed = {rank: outcome for rank, outcome in outcomes.items() if outcome.failure and not outcome.failure.heard_of}
    if failed:
        return findings_of(case, failed)
    if death is not None and not timed_out:
        return (_undecided("DY504", f"{death} before it answered", "a rank that is gone compares nothing"),)
    silent = ", ".join(str(rank) for rank in range(case.tp * case.pp) if rank not in outcomes)
    return (_undecided("DY505", f"no answer from rank {silent} in {timeout:g} s", "nothing was compared in time"),)


def _nothing_planned() -> Finding:
    return Finding(
        "PL104", Severity.UNDECIDED, "the plan has no tensor-parallel entry: there is nothing to run", Place()
    )


def _undecided(code: str, message: str, why: str) -> Finding:
    return Finding(code, Severity.UNDECIDED, message, Place(), why, fault=Fault.OURS)


def _result(began: float, findings: tuple[Finding, ...]) -> LevelResult:
    return LevelResult("run", time.monotonic() - began, findings)
