"""The check on one rank: build both models, ask both the same questions, compare. Needs an initialised process group."""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.ir.plan import key_for, numbered
from shardproof.planner.ir.styles import is_packed_name
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.transformers_facts.flex_attention import FLEX, flex_by_definition
from shardproof.verify.run.collectives.autograd import AxisRank
from shardproof.verify.run.collectives.own_styles import applied
from shardproof.verify.run.compare.localise import Divergence, first_divergence
from shardproof.verify.run.compare.outputs import Limits, compared, limits_of, perturbed, streams, weights
from shardproof.verify.run.compare.saved import saved
from shardproof.verify.run.compare.tensors import LIMIT, SMALLEST_FAULT, Comparison
from shardproof.verify.run.inputs import Inputs, inputs
from shardproof.verify.run.observed import Observed
from shardproof.verify.run.outcome import Failure, Outcome, failure_of
from shardproof.verify.run.questions import observe
from shardproof.verify.run.reference import State, checkpoint_form, freeze_as, sharded_model, single_device
from shardproof.verify.stages.case import Applied, Case

if TYPE_CHECKING:
    from shardproof.verify.run.pipeline.check import SingleDevice

PERTURBATIONS = 2
SAFETY = 10.0
"""The limit for a real checkpoint, and for a twin whose answers are off by little, in multiples of how far the answers move when
every weight moves by one rounding."""


@dataclass(slots=True)
class _Progress:
    """How far this rank has come, for the report of an exception; `want` are the single-device answers, `observed` the current
    ones.
    """

    stage: str = "building the single-device model"
    sharded: bool = False
    observed: Observed | None = None
    single: PreTrainedModel | None = None
    want: Observed = field(default_factory=Observed)
    state: State | None = None
    limits: Limits = field(default_factory=dict)
    before: list[Comparison] = field(default_factory=list)
    """Comparisons that are not of answers: of the weights after loading and after saving."""


@dataclass(slots=True)
class SharedBaseline:
    """The single-device run that pipeline ranks of one process share; the first rank makes it."""

    single_device: "SingleDevice | None" = None


@dataclass(frozen=True, slots=True)
class TwinBaseline:
    """The single-device model of a case and its answers, which do not depend on the plan."""

    single: PreTrainedModel
    want: Observed
    state: State
    """Its weights, as its checkpoint would hold them."""


def twin_baseline(case: Case, *, device: torch.device) -> TwinBaseline:
    """Ask the single-device model of a twin once, for many plans. Its exceptions pass through."""
    single = single_device(case, device)
    with _flex_attention(case, device):
        want = observe(single, inputs(single, seed=case.seed), into=Observed())
    return TwinBaseline(single, want, checkpoint_form(case, single))


def check(
    case: Case,
    *,
    rank: int,
    device: torch.device,
    before: "TwinBaseline | SharedBaseline | None" = None,
    hasty: bool = False,
) -> Outcome:
    """One case on this rank. An exception becomes this rank's failure; nothing is raised.

    The single-device model is not asked again where `before` has its answers. A `hasty` check ends with the first wrong answer,
    and does not save the sharded model.
    """
    progress = _Progress()
    try:
        with _flex_attention(case, device):
            if case.pp > 1:
                shared = before if isinstance(before, SharedBaseline) else SharedBaseline()
                return _check_pipeline(case, shared, rank=rank, device=device, progress=progress)
            if case.training:
                return _check_training(case, rank=rank, device=device, progress=progress)
            if isinstance(before, TwinBaseline):
                progress.single, progress.want, progress.state = before.single, before.want, before.state
            return _check_tensor(case, rank=rank, device=device, progress=progress, hasty=hasty)
    except Exception as error:  # whatever the model, the client or the plan makes it raise is the result
        at = progress.observed
        stage, module = (at.stage, at.inside) if at and at.stage not in ("loading", "done") else (progress.stage, "")
        failure = failure_of(error, stage=stage, module=module, sharded=progress.sharded)
        return _outcome(case, progress, rank=rank, failure=failure)


def _flex_attention(case: Case, device: torch.device) -> AbstractContextManager[object]:
    """Torch's kernel has no float64, and on a CPU no backward: there the definition runs instead of it."""
    by_definition = case.loaded.asked.attention == FLEX and (device.type == "cpu" or not case.weights)
    return flex_by_definition() if by_definition else nullcontext()


def _check_tensor(case: Case, *, rank: int, device: torch.device, progress: _Progress, hasty: bool = False) -> Outcome:
    single = progress.single or single_device(case, device)
    asked = inputs(single, seed=case.seed)
    if progress.single is None:
        progress.single, progress.observed = single, progress.want
        observe(single, asked, into=progress.want, exact=not case.weights)
    if case.weights:
        progress.limits = _limits(case, single, asked, progress.want)
    progress.observed, progress.sharded, progress.stage = None, True, "loading the sharded model"
    styles = case.plan.styles(base_prefix(single))
    if case.applied is Applied.OURS or any(map(numbered, styles)) or any(map(is_packed_name, styles.values())):
        own = applied(single, styles, AxisRank(rank, case.tp))
        progress.observed = got = Observed()
        observe(own.model, asked, into=got, exact=not case.weights, asked_of=progress.want)
        got.gradients = {what: own.whole(gradients) for what, gradients in got.gradients.items()}
        if not case.weights and _within_reach(progress):
            progress.limits = _own_rounding(case, single, asked, progress.want)
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
    if not case.weights and _within_reach(progress):
        progress.limits = _own_rounding(case, single, asked, progress.want)
    progress.stage = "saving the sharded model"
    progress.before += saved(model, single, case.loaded, rank=rank)
    return _outcome(case, progress, rank=rank)


def _check_training(case: Case, *, rank: int, device: torch.device, progress: _Progress) -> Outcome:
    from shardproof.verify.run.training.bench import training_bench
    from shardproof.verify.run.training.questions import ask_training

    bench = training_bench(case, rank=rank, device=device)
    progress.stage, progress.sharded = "training", True
    return Outcome(rank, training=ask_training(bench))


def _wrong_already(progress: _Progress, got: Observed) -> bool:
    answers = compared(got, progress.want, progress.limits)
    return any(not one.right for one in (*progress.before, *answers))


def _within_reach(progress: _Progress) -> bool:
    """Whether answers of a twin are wrong, and all of them by so little that its own rounding may be to blame."""
    assert progress.observed is not None
    wrong = [one for one in compared(progress.observed, progress.want, {}) if not one.right]
    return bool(wrong) and all(one.error <= SMALLEST_FAULT for one in wrong)


def _own_rounding(case: Case, single: PreTrainedModel, asked: Inputs, want: Observed) -> Limits:
    """The limits of a twin whose answers move by more than usual when its weights move by one rounding. Each rank measures on a
    copy: it may be a thread, and the others ask the same model.
    """
    moved = _moved(case, copy.deepcopy(single), asked, want, exact=True)
    return {key: max(limit, LIMIT) for key, limit in moved.items()}


def _limits(case: Case, single: PreTrainedModel, asked: Inputs, want: Observed) -> Limits:
    """Limits: how far the model's answers move when its weights move by one rounding, times a margin. Measured on rank 0."""
    shared: list[Limits] = [{}]
    if dist.get_rank() == 0:
        shared[0] = _moved(case, single, asked, want)
    dist.broadcast_object_list(shared, src=0, device=single.device)
    return shared[0]


def _moved(
    case: Case, single: PreTrainedModel, asked: Inputs, want: Observed, *, exact: bool = False
) -> dict[tuple[str, str], float]:
    state = {name: value.clone() for name, value in single.state_dict().items()}
    moved = []
    for seed in range(PERTURBATIONS):
        single.load_state_dict(perturbed(single, seed=seed))
        answers = observe(single, asked, into=Observed(), exact=exact, asked_of=want)
        moved.append(compared(answers, want, {}, streams=_streams(case, single)))
    single.load_state_dict(state)
    return limits_of(moved, factor=SAFETY, least=SAFETY * torch.finfo(single.dtype).eps)


def _streams(case: Case, single: PreTrainedModel) -> list[str]:
    styles = case.plan.styles(base_prefix(single))
    return streams(single, [name for name, _ in single.named_modules() if key_for(name, styles)])


def _check_pipeline(
    case: Case, shared: SharedBaseline, *, rank: int, device: torch.device, progress: _Progress
) -> Outcome:
    from shardproof.verify.run.pipeline.check import check_pipeline, run_single_device
    from shardproof.verify.stages.cutting import laid_out

    if shared.single_device is None:
        single = single_device(case, device)
        progress.stage, progress.sharded = "pipeline", True
        cut = laid_out(case, single)
        progress.stage, progress.sharded = "the single-device model", False
        shared.single_device = run_single_device(case, single, cut)
    progress.stage, progress.sharded = "pipeline", True
    compared = check_pipeline(case, shared.single_device)
    return Outcome(rank, compared, unasked=_told(shared.single_device.want.unasked))


def _told(unasked: Mapping[str, Exception]) -> dict[str, str]:
    return {stage: f"{type(error).__name__}: {error}" for stage, error in unasked.items()}


def _outcome(case: Case, progress: _Progress, *, rank: int, failure: Failure | None = None) -> Outcome:
    """All comparisons until now; where an output is wrong, also the first module whose output is."""
    got, want, single = progress.observed, progress.want, progress.single
    unasked = _told(want.unasked)
    if got is None or got is want or single is None:
        return Outcome(rank, tuple(progress.before), failure, unasked=unasked)
    answers = compared(got, want, progress.limits, streams=_streams(case, single))
    divergence: Divergence | None = None
    if any(not one.right and not one.what.startswith("gradient") for one in answers):
        styles = case.plan.styles(base_prefix(single))
        divergence = first_divergence(got.activations, want.activations, styles, AxisRank(rank, case.tp))
    refused = failure_of(got.refused, stage="backward", module="", sharded=True) if got.refused else None
    return Outcome(rank, (*progress.before, *answers), failure, divergence, refused, unasked)
