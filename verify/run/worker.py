"""What each rank does: build both models, ask the same of both, compare. Needs an initialised process group."""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.verify.run.collectives.autograd import Ranks
from shardproof.verify.run.collectives.own_styles import applied
from shardproof.verify.run.compare.answers import Limits, compared, limits_of, perturbed, streams, weights
from shardproof.verify.run.compare.localise import Divergence, first_divergence
from shardproof.verify.run.compare.saved import saved
from shardproof.verify.run.compare.tensors import Comparison
from shardproof.verify.run.inputs import Inputs, inputs
from shardproof.verify.run.outcome import Failure, Outcome, failure_of
from shardproof.verify.run.questions import Observed, observe
from shardproof.verify.run.reference import State, checkpoint_form, freeze_as, sharded_model, single_device
from shardproof.verify.stages.case import Applied, Case

if TYPE_CHECKING:
    from shardproof.verify.run.pipeline.check import Alone

PERTURBATIONS = 2
SAFETY = 10.0
"""A real checkpoint's limit, in units of how far its own answers move when every weight moves by one rounding."""


@dataclass(slots=True)
class _Progress:
    """How far this rank has come, for the report of an exception."""

    stage: str = "building the single-device model"
    sharded: bool = False
    observed: Observed | None = None
    single: PreTrainedModel | None = None
    want: Observed = field(default_factory=Observed)
    state: State | None = None
    limits: Limits = field(default_factory=dict)
    before: list[Comparison] = field(default_factory=list)
    """What was compared before the first question."""


@dataclass(slots=True)
class Shared:
    """What pipeline ranks of one process ask the single-device model once: the first of them does."""

    alone: "Alone | None" = None


@dataclass(frozen=True, slots=True)
class Known:
    """The single-device model of a case and its answers, which do not depend on the plan."""

    single: PreTrainedModel
    want: Observed
    state: State
    """Its weights, as its checkpoint would hold them."""


def known(case: Case, *, device: torch.device) -> Known:
    """Ask the single-device model of a twin once, for many plans; what it raises passes through."""
    single = single_device(case, device)
    want = observe(single, inputs(single, seed=case.seed), into=Observed())
    return Known(single, want, checkpoint_form(case, single))


def check(
    case: Case, *, rank: int, device: torch.device, before: "Known | Shared | None" = None, hasty: bool = False
) -> Outcome:
    """One case on this rank. An exception becomes this rank's failure; nothing is raised.

    With the single-device answers of `before` they are not asked again. A hasty check ends with the first answer that is
    wrong, and saves nothing.
    """
    progress = _Progress()
    try:
        if case.pp > 1:
            shared = before if isinstance(before, Shared) else Shared()
            return _check_pipeline(case, shared, rank=rank, device=device, progress=progress)
        if isinstance(before, Known):
            progress.single, progress.want, progress.state = before.single, before.want, before.state
        return _check_tensor(case, rank=rank, device=device, progress=progress, hasty=hasty)
    except Exception as error:  # whatever the model, the client or the plan makes it raise is the result
        at = progress.observed
        stage, module = (at.stage, at.inside) if at and at.stage not in ("loading", "done") else (progress.stage, "")
        failure = failure_of(error, stage=stage, module=module, sharded=progress.sharded)
        return _outcome(case, progress, rank=rank, failure=failure)


def _check_tensor(case: Case, *, rank: int, device: torch.device, progress: _Progress, hasty: bool = False) -> Outcome:
    single = progress.single or single_device(case, device)
    asked = inputs(single, seed=case.seed)
    if progress.single is None:
        progress.single, progress.observed = single, progress.want
        observe(single, asked, into=progress.want, exact=not case.weights)
    if case.weights:
        progress.limits = _limits(case, single, asked, progress.want)
    progress.observed, progress.sharded, progress.stage = None, True, "loading the sharded model"
    if case.applied is Applied.OURS:
        own = applied(single, case.plan.styles(base_prefix(single)), Ranks(rank, case.tp))
        progress.observed = got = Observed()
        observe(own.model, asked, into=got, exact=not case.weights, asked_of=progress.want)
        got.gradients = {what: own.whole(gradients) for what, gradients in got.gradients.items()}
        return _outcome(case, progress, rank=rank)
    model = sharded_model(case, progress.state or checkpoint_form(case, single))
    nn.Module.to(model, device)  # a model of one rank is left on the CPU by the client
    freeze_as(model, single)
    progress.before = weights(model, single)
    progress.observed = Observed()
    enough = partial(_wrong_already, progress) if hasty else None
    observe(model, asked, into=progress.observed, exact=not case.weights, asked_of=progress.want, enough=enough)
    if hasty:
        return _outcome(case, progress, rank=rank)
    progress.stage = "saving the sharded model"
    progress.before += saved(model, single, case.loaded, rank=rank)
    return _outcome(case, progress, rank=rank)


def _wrong_already(progress: _Progress, got: Observed) -> bool:
    answers = compared(got, progress.want, progress.limits)
    return any(not one.right for one in (*progress.before, *answers))


def _limits(case: Case, single: PreTrainedModel, asked: Inputs, want: Observed) -> Limits:
    """How far this model's answers move when its weights move by one rounding, with a margin; the first rank tries."""
    shared: list[Limits] = [{}]
    if dist.get_rank() == 0:
        shared[0] = _moved(case, single, asked, want)
    dist.broadcast_object_list(shared, src=0, device=single.device)
    return shared[0]


def _moved(case: Case, single: PreTrainedModel, asked: Inputs, want: Observed) -> Limits:
    state = {name: value.clone() for name, value in single.state_dict().items()}
    moved = []
    for seed in range(PERTURBATIONS):
        single.load_state_dict(perturbed(single, seed=seed))
        answers = observe(single, asked, into=Observed(), exact=False, asked_of=want)
        moved.append(compared(answers, want, {}, streams=_streams(case, single)))
    single.load_state_dict(state)
    return limits_of(moved, factor=SAFETY, least=SAFETY * torch.finfo(single.dtype).eps)


def _streams(case: Case, single: PreTrainedModel) -> list[str]:
    styles = case.plan.styles(base_prefix(single))
    return streams(single, [name for name, _ in single.named_modules() if generic(name) in styles])


def _check_pipeline(case: Case, shared: Shared, *, rank: int, device: torch.device, progress: _Progress) -> Outcome:
    from shardproof.verify.run.pipeline.check import alone, check_pipeline
    from shardproof.verify.stages.cutting import laid_out

    if shared.alone is None:
        single = single_device(case, device)
        progress.stage, progress.sharded = "pipeline", True
        cut = laid_out(case, single)
        progress.stage, progress.sharded = "the single-device model", False
        shared.alone = alone(case, single, cut)
    progress.stage, progress.sharded = "pipeline", True
    return Outcome(rank, check_pipeline(case, shared.alone))


def _outcome(case: Case, progress: _Progress, *, rank: int, failure: Failure | None = None) -> Outcome:
    """What was compared until now; where an output is wrong, also the first module that was."""
    got, want, single = progress.observed, progress.want, progress.single
    unasked = {stage: f"{type(error).__name__}: {error}" for stage, error in want.unasked.items()}
    if got is None or got is want or single is None:
        return Outcome(rank, tuple(progress.before), failure, unasked=unasked)
    answers = compared(got, want, progress.limits, streams=_streams(case, single))
    divergence: Divergence | None = None
    if any(not one.right and not one.what.startswith("gradient") for one in answers):
        styles = case.plan.styles(base_prefix(single))
        divergence = first_divergence(got.activations, want.activations, styles, Ranks(rank, case.tp))
    refused = failure_of(got.refused, stage="backward", module="", sharded=True) if got.refused else None
    return Outcome(rank, (*progress.before, *answers), failure, divergence, refused, unasked)
