"""What each rank does: build both models, ask the same of both, compare. Needs an initialised process group."""

from dataclasses import dataclass

import torch

from planner.frontend.load import base_prefix, build
from planner.frontend.twin import random_state
from verify.dynamic.cases import Case, inputs
from verify.dynamic.compare import FLOOR, LIMIT, Comparison, relative_error, whole
from verify.dynamic.localize import Divergence, Rank, first_divergence
from verify.dynamic.outcome import Outcome, failure_of
from verify.dynamic.reference import Observed, State, observe, reference_model, sharded_model


@dataclass(slots=True)
class _Progress:
    """How far this rank has come, for the report of an exception."""

    observed: Observed
    sharded: bool = False
    want: Observed | None = None


def check(case: Case, *, rank: int, device: torch.device) -> Outcome:
    """One case on this rank. An exception becomes this rank's failure; nothing is raised."""
    progress = _Progress(Observed(stage="building the single-device model"))
    try:
        if case.pp > 1:
            return _check_pipeline(case, rank=rank, device=device, progress=progress)
        return _check_tensor(case, rank=rank, device=device, progress=progress)
    except Exception as error:  # whatever the model, the client or the plan makes it raise is the result
        at = progress.observed
        failure = failure_of(error, stage=at.stage, module=at.inside, sharded=progress.sharded)
        if progress.want is None:
            return Outcome(rank, failure=failure)
        compared, divergence = _compared(case, at, progress.want, rank=rank)
        return Outcome(rank, compared, failure, divergence)


def _check_tensor(case: Case, *, rank: int, device: torch.device, progress: _Progress) -> Outcome:
    single = reference_model(case.loaded, device)
    state = random_state(single, seed=case.seed)
    single.load_state_dict(state)
    asked = inputs(single, seed=case.seed)
    want = observe(single, asked, into=progress.observed)
    progress.observed, progress.sharded, progress.want = Observed(stage="loading the sharded model"), True, want
    model = sharded_model(case.loaded, case.plan, state, tp=case.tp)
    weights = _weights(dict(model.named_parameters()), dict(single.named_parameters()))
    got = observe(model, asked, into=progress.observed)
    compared, divergence = _compared(case, got, want, rank=rank)
    refused = failure_of(got.refused, stage="backward", module="", sharded=True) if got.refused else None
    return Outcome(rank, (*weights, *compared), divergence=divergence, refused=refused)


def _check_pipeline(case: Case, *, rank: int, device: torch.device, progress: _Progress) -> Outcome:
    from verify.dynamic.pipeline import check_pipeline  # only where there are stages

    single = reference_model(case.loaded, device)
    state: State = random_state(single, seed=case.seed)
    progress.observed.stage, progress.sharded = "pipeline", True
    return Outcome(rank, check_pipeline(case.loaded, state, case.plan, case.tp, case.pp))


def _weights(got: dict[str, torch.nn.Parameter], want: dict[str, torch.nn.Parameter]) -> list[Comparison]:
    """Every parameter reassembled, bit for bit."""
    return [
        Comparison("weights", relative_error(whole(got[name]), value) if name in got else float("inf"), 0.0, name)
        for name, value in want.items()
    ]


def _values(got: Observed, want: Observed) -> list[Comparison]:
    both = [name for name in want.values if name in got.values]
    return [Comparison(name, relative_error(got.values[name], want.values[name]), LIMIT) for name in both]


def _gradients(got: Observed, want: Observed) -> list[Comparison]:
    compared = []
    for what, gradients in want.gradients.items():
        if what not in got.gradients:
            continue
        largest = max((float(gradient.abs().max()) for gradient in gradients.values()), default=0.0)
        for name, gradient in gradients.items():
            error = relative_error(got.gradients[what][name], gradient, floor=FLOOR * largest)
            compared.append(Comparison(what, error, LIMIT, name))
    return compared


def _compared(
    case: Case, got: Observed, want: Observed, *, rank: int
) -> tuple[tuple[Comparison, ...], Divergence | None]:
    """What both models answered, compared; where an output is wrong, also the first module that was."""
    values = _values(got, want)
    if all(comparison.right for comparison in values):
        return (*values, *_gradients(got, want)), None
    styles = case.plan.styles(base_prefix(build(case.loaded)))
    divergence = first_divergence(got.crossings, want.crossings, styles, Rank(rank, case.tp))
    return (*values, *_gradients(got, want)), divergence
