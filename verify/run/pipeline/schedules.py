"""Run this rank's stages by torch's pipeline schedules, or by a plain send and receive for cached decoding."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle, ScheduleLoopedBFS
from torch.distributed.pipelining.stage import _PipelineStageBase  # what its schedules take, an invariant list of

from shardproof.verify.run.inputs import Inputs
from shardproof.verify.run.pipeline.single_device import loss_of
from shardproof.verify.stages.case import Schedule
from shardproof.verify.stages.stage import Stage


@dataclass(frozen=True, slots=True)
class StageSlot:
    """This rank's slot in `mesh`, whose dims are pp and tp, for a pipeline of so many `stages`."""

    stages: int
    mesh: DeviceMesh

    @property
    def group(self) -> dist.ProcessGroup:
        """The ranks of this pipeline."""
        return self.mesh.get_group("pp")

    @property
    def own(self) -> range:
        """The numbers of the stages that this rank holds, which are dealt out round-robin."""
        return range(self.mesh.get_local_rank("pp"), self.stages, self.mesh.size(0))

    def rank(self, stage: int) -> int:
        """The global rank that holds a stage and has the same tensor-parallel rank."""
        return dist.get_global_rank(self.group, stage % self.mesh.size(0))


def microbatches(schedule: Schedule, ranks: int) -> int:
    """How many microbatches: two for GPipe, else one for each rank and at least two."""
    return 2 if schedule is Schedule.GPIPE else max(2, ranks)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One schedule over this rank's stages. It takes whole batches; the rank of the last stage gets the results."""

    own: tuple[Stage, ...]
    runtime: PipelineScheduleSingle | PipelineScheduleMulti

    def forward(self, asked: Inputs, arguments: dict[str, Any]) -> torch.Tensor | None:
        """All microbatches of a batch, without gradients."""
        given: torch.Tensor | None = self.runtime.eval(*self._given(asked.ids), **arguments)
        return given if self.own[-1].last else None

    def step(self, asked: Inputs, losses: list[torch.Tensor]) -> torch.Tensor | None:
        """Forward and backward of all microbatches; `losses` gets one loss each, on the rank of the last stage."""
        target = asked.ids if self.own[-1].last else None
        arguments: dict[str, Any] = dict(asked.whole())
        given: torch.Tensor | None = self.runtime.step(
            *self._given(asked.ids), target=target, losses=losses, **arguments
        )
        return given if self.own[-1].last else None

    def _given(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (ids,) if self.own[0].first else ()


def scheduled(
    own: tuple[Stage, ...], ids: torch.Tensor, logits: Sequence[torch.Tensor], slot: StageSlot, schedule: Schedule
) -> Scheduled:
    """A schedule over the stages, set up for the shapes of the single-device model's layer inputs and logits.

    It computes gradients where autograd is enabled. Source of the classes: torch.distributed.pipelining.schedules.
    """
    train = torch.is_grad_enabled()
    forms = ids.chunk(len(logits))[0], logits[0]
    stages: list[_PipelineStageBase] = [
        _torch_stage(stage, place, forms, slot, train=train) for place, stage in zip(slot.own, own, strict=True)
    ]
    loss = loss_of if train else None
    count = len(logits)
    if len(stages) > 1:
        kind = ScheduleInterleaved1F1B if schedule is Schedule.INTERLEAVED else ScheduleLoopedBFS
        return Scheduled(own, kind(stages, count, loss_fn=loss, scale_grads=False))
    match schedule:
        case Schedule.GPIPE:
            return Scheduled(own, ScheduleGPipe(stages[0], count, loss_fn=loss, scale_grads=False))
        case _:
            return Scheduled(own, Schedule1F1B(stages[0], count, loss_fn=loss, scale_grads=False))


def _torch_stage(
    stage: Stage, place: int, ends: tuple[torch.Tensor, torch.Tensor], slot: StageSlot, *, train: bool
) -> PipelineStage:
    """Torch's stage of ours; activations at a stage boundary have the shapes of the single-device model's layer inputs."""
    ids, logits = ends
    received = (ids,) if stage.first else stage.forms(stage.receives)
    sent = (logits.detach().requires_grad_(),) if stage.last else stage.forms(stage.sends)
    return PipelineStage(
        stage,
        place,
        slot.stages,
        stage.device,
        input_args=received if stage.first else _empty(received, train=train),
        output_args=_empty(sent, train=train),
        group=slot.group,
    )


def _empty(
    forms: Iterable[torch.Tensor], *, train: bool, device: torch.device | None = None
) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.empty_like(
            form,
            device=device,
            requires_grad=train and form.requires_grad,
            memory_format=torch.contiguous_format,
        )
        for form in forms
    )


def exchange(own: tuple[Stage, ...], arguments: Mapping[str, object], slot: StageSlot) -> list[torch.Tensor]:
    """One forward through all stages, each sending its activations to the next rank.

    Returns the last stage's result on the rank that holds it, else an empty list.
    """
    for place, stage in zip(slot.own, own, strict=True):
        received = _empty(stage.forms(stage.receives), train=False, device=stage.device)
        for tensor in received:
            dist.recv(tensor, slot.rank(place - 1), group=slot.group)
        given = stage(*received, **arguments)
        if stage.last:
            return [given]
        for tensor in given:
            dist.send(tensor, slot.rank(place + 1), group=slot.group)
    return []
