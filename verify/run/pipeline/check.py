"""Run the stages of a pipeline plan on ranks, and compare logits, loss, gradients and cached decoding with one device."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from shardproof.planner.inputs.example import caching
from shardproof.planner.transformers_facts.sharding import apply_plan
from shardproof.planner.weights.shards import whole
from shardproof.verify.run.compare.tensors import FLOOR, LIMIT, Comparison, relative_error
from shardproof.verify.run.held_state import HeldState
from shardproof.verify.run.inputs import Inputs
from shardproof.verify.run.pipeline.schedules import StageSlot, exchange, microbatches, scheduled
from shardproof.verify.run.pipeline.single_device import SingleDeviceOutputs, batch, joined, outputs_of, padded, steps
from shardproof.verify.run.reference import State, freeze_as, from_state, with_plan
from shardproof.verify.stages.case import KEPT, Case, Schedule, Staging
from shardproof.verify.stages.cutting import Cutting, between, stage_of
from shardproof.verify.stages.exact import Wide
from shardproof.verify.stages.stage import Stage, StagePlace, absent
from shardproof.verify.stages.weights import drop, untie


@dataclass(frozen=True, slots=True)
class SingleDevice:
    """The single-device model of a case and its outputs, the same for every rank.

    `state` are its weights before the first forward, in which some models change them. `asked` are the inputs of all microbatches
    as one batch, `want` the outputs.
    """

    single: PreTrainedModel
    state: State
    cutting: Cutting
    asked: Inputs
    want: SingleDeviceOutputs


def run_single_device(case: Case, single: PreTrainedModel, cutting: Cutting) -> SingleDevice:
    """Run the single-device model on every microbatch."""
    state = {name: value.clone() for name, value in single.state_dict().items()}
    parts = batch(single, microbatches(case.staging.schedule, case.pp))
    with Wide():  # not around the building of models: their float32 buffers are to be the same
        return SingleDevice(single, state, cutting, joined(parts), outputs_of(single, cutting.layout, parts))


def check_pipeline(case: Case, before: SingleDevice) -> tuple[Comparison, ...]:
    """What this rank of `tp * pp` compared; every rank must call this."""
    mesh = init_device_mesh(before.single.device.type, (case.pp, case.tp), mesh_dim_names=("pp", "tp"))
    slot = StageSlot(case.pp * case.staging.rounds, mesh)
    own = tuple(_stage(case, before, place, slot) for place in _places(case, before, slot))
    began, compared = [HeldState(stage.model) for stage in own], list[Comparison]()
    with Wide():
        for question in (_padded, _decoded, _compare_last_logits):
            compared += question(own, before, slot)
            for state in began:
                state.restore()
        return (*compared, *_gradients(own, before, slot, case.staging))


def _places(case: Case, before: SingleDevice, slot: StageSlot) -> list[StagePlace]:
    """The stages that this rank holds."""
    order = case.staging.faults.order(slot.stages)
    return [between(case, before.single, before.cutting, order[place]) for place in slot.own]


def _stage(case: Case, before: SingleDevice, place: StagePlace, slot: StageSlot) -> Stage:
    """One of this rank's stages, without the weights of other stages, and sharded by the client's own code."""
    layout, device = before.cutting.layout, before.single.device
    model = from_state(with_plan(case.loaded, case.plan), before.state)
    freeze_as(model, before.single)
    nn.Module.to(model, device)
    missing = absent(layout, place)
    drop(model, missing)
    if slot.mesh.size(1) > 1:
        untie(model)
        apply_plan(model, slot.mesh["tp"], absent=missing)
    return stage_of(case, model, layout, place, device)


def _padded(own: tuple[Stage, ...], before: SingleDevice, slot: StageSlot) -> list[Comparison]:
    """The logits of the left-padded batch, without gradients."""
    want, asked = before.want, before.asked
    if not want.padded:
        return []
    for stage in own:
        stage.record, stage.inputs = want.record, caching(stage.model, False)
    with torch.no_grad():
        arguments = padded(asked, positions=bool(want.positions))
        given = scheduled(own, asked.ids, want.logits, slot, Schedule.GPIPE).forward(asked, arguments)
    return (
        []
        if given is None
        else _by_microbatch("left-padded logits", given, want.padded, asked.compared_positions(asked.mask))
    )


def _by_microbatch(
    what: str, given: torch.Tensor, want: list[torch.Tensor], mask: torch.Tensor | None = None
) -> list[Comparison]:
    """Compare microbatch by microbatch; under a mask, only positions that hold a token."""
    compared = []
    masks = [None] * len(want) if mask is None or not mask.numel() else mask.chunk(len(want))
    for got, wanted, seen in zip(given.chunk(len(want)), want, masks, strict=True):
        if seen is not None and got.ndim == 3:
            got, wanted = (full[:, -seen.shape[1] :][seen] for full in (got, wanted))
        compared.append(Comparison(what, relative_error(got, wanted), LIMIT))
    return compared


@torch.no_grad()
def _decoded(own: tuple[Stage, ...], before: SingleDevice, slot: StageSlot) -> list[Comparison]:
    """Prefill and decode, each stage with its own cache."""
    want = before.want
    if want.decoded is None:
        return []
    for stage in own:
        stage.cache = {}
    given: list[torch.Tensor] = []
    for arguments, record in zip(steps(before.asked), want.steps, strict=True):
        for stage in own:
            stage.record = record
            stage.inputs = {**caching(stage.model, True), **stage.cache}
        given += exchange(own, arguments, slot)
    if not given:
        return []
    return [Comparison("decoded logits", relative_error(torch.cat(given, dim=1), want.decoded), LIMIT)]


@torch.no_grad()
def _compare_last_logits(own: tuple[Stage, ...], before: SingleDevice, slot: StageSlot) -> list[Comparison]:
    """The logits of the last tokens alone (`logits_to_keep`), as a server asks for them."""
    want = before.want
    if want.kept is None:
        return []
    for stage in own:
        stage.record, stage.inputs = want.kept_record, {**caching(stage.model, False)}
    given = exchange(own, {**before.asked.whole(), "logits_to_keep": KEPT}, slot)
    return [Comparison("kept logits", relative_error(given[0], want.kept), LIMIT)] if given else []


class _Sums:
    """Sums of gradients over microbatches, taken out of `.grad` after each microbatch's backward.

    Left in `.grad`, the gradient of the first microbatch would be all-reduced again with the second's by
    `replicated_with_grad_allreduce`. The hooks are registered after the first forward, since the client registers its own in
    it, and those have to run first.
    """

    def __init__(self, stage: Stage) -> None:
        self.sums: dict[nn.Parameter, torch.Tensor] = {}
        self._handles = [stage.register_forward_hook(self._register)]

    def _register(self, stage: nn.Module, *_: object) -> None:
        self.remove()
        trained = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        self._handles = [parameter.register_post_accumulate_grad_hook(self._take) for parameter in trained]

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _take(self, parameter: torch.Tensor) -> None:
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        had = self.sums.get(parameter)
        self.sums[parameter] = parameter.grad if had is None else had + parameter.grad
        parameter.grad = None


def _gradients(own: tuple[Stage, ...], before: SingleDevice, slot: StageSlot, staging: Staging) -> list[Comparison]:
    """One step of the schedule over the microbatches: compare logits, loss and gradients; another one in training mode, where
    the model takes another path there.
    """
    compared = _one_step(own, before, before.want, slot, staging)
    if before.want.training is None:
        return compared
    modes = [(stage.model, stage.model.training) for stage in own]
    for model, _ in modes:
        model.train()
    training = _one_step(own, before, before.want.training, slot, staging)
    for model, mode in modes:
        model.train(mode)
    return compared + [replace(one, what=f"{one.what} in training") for one in training]


def _one_step(
    own: tuple[Stage, ...], before: SingleDevice, want: SingleDeviceOutputs, slot: StageSlot, staging: Staging
) -> list[Comparison]:
    asked = before.asked
    for stage in own:
        stage.record, stage.inputs = want.record, caching(stage.model, False)
    taken, losses = {stage: _Sums(stage) for stage in own}, list[torch.Tensor]()
    given = scheduled(own, asked.ids, want.logits, slot, staging.schedule).step(asked, losses)
    compared = []
    if given is not None:
        compared += _by_microbatch("logits", given, want.logits)
        error = relative_error(torch.stack(losses).sum(), torch.stack(want.losses).sum())
        compared.append(Comparison("loss", error, LIMIT))
    for kept in taken.values():
        kept.remove()
    sums = {stage: kept.sums for stage, kept in taken.items()}
    return compared + _compared_gradients(sums, before, want, slot, staging.faults.not_summed())


def _compared_gradients(
    sums: Mapping[Stage, Mapping[nn.Parameter, torch.Tensor]],
    before: SingleDevice,
    want: SingleDeviceOutputs,
    slot: StageSlot,
    not_summed: frozenset[str],
) -> list[Comparison]:
    """Compare every gradient that this rank owns, after it was summed over the parameter's names and its stages.

    Gradients of parameters in `not_summed` are not summed over the stages: a fault that the comparison has to find.
    """
    single = before.single
    named = {id(value): name for name, value in single.named_parameters()}
    canonical = {name: named[id(value)] for name, value in single.named_parameters(remove_duplicate=False)}
    own: dict[str, torch.Tensor] = {}
    for stage, gradients in sums.items():
        for name, value in stage.owned():
            real = canonical[name]
            gradient = whole(gradients[value]) if value in gradients else torch.zeros_like(want.gradients[real])
            own[real] = own[real] + gradient if real in own else gradient
    largest = max((float(value.abs().max()) for value in want.gradients.values()), default=0.0)
    compared = []
    for name, wanted in want.gradients.items():
        total = own[name].clone() if name in own else torch.zeros_like(wanted)
        if name not in not_summed:
            dist.all_reduce(total, group=slot.group)
        if name in own:
            error = relative_error(total, wanted, floor=FLOOR * largest)
            compared.append(Comparison("gradient", error, LIMIT, name))
    return compared
