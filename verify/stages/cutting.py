"""Where a model is cut into the stages of a case, and the stages themselves."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import join
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.verify.stages.case import Case
from shardproof.verify.stages.stage import Stage, StagePlace
from shardproof.verify.stages.stage_boundary import StageBoundary, boundary, possible, program_of, sent
from shardproof.verify.stages.stage_layout import StageLayout, dealt, layout_of, moved


@dataclass(frozen=True, slots=True)
class Cutting:
    """The layers of every stage, and the traced model that says what is sent (None where it cannot be traced)."""

    graph: Graph | None
    layout: StageLayout


def laid_out(case: Case, single: nn.Module) -> Cutting:
    """The stages of a case; an even split avoids cuts that cannot be made. `ValueError` where the plan makes no stages."""
    plan, staging = case.plan, case.staging
    stages = case.pp * staging.rounds
    layout = layout_of(single, plan.pp, plan.head_pp, base_prefix=base_prefix(single), stages=stages)
    graph = program_of(case.loaded)
    if staging.bounds:
        chunks = dealt(layout.depth, stages, bounds=staging.bounds)
    else:
        chunks = moved(layout.chunks, possible(graph, layout.layers, layout.depth, layout.before))
    return Cutting(graph, replace(layout, chunks=staging.faults.chunks(chunks)))


def between(case: Case, single: nn.Module, cutting: Cutting, stage: int) -> StagePlace:
    """The activations that a stage receives and sends: those that it has to, as far as the plan lists them."""
    layout, prefix = cutting.layout, base_prefix(single)
    listed = next(entry.inputs for entry in case.plan.pp if join(prefix, entry.module) == layout.layers)
    start, end = (
        sent(boundary(cutting.graph, cut, single), listed, single.get_submodule(layout.layer(0)))
        if cut
        else StageBoundary()
        for cut in layout.cuts(stage)
    )
    return StagePlace(stage, start, end, case.staging.faults.kept(stage))


def stage_of(case: Case, model: nn.Module, layout: StageLayout, place: StagePlace, device: torch.device) -> Stage:
    """A stage of a model that has its weights, or is on the meta device; with the faults that the case injects."""
    faults = case.staging.faults
    faults.before_build(model, layout, place.stage)
    stage = Stage(model, layout, device, place)
    faults.after_build(stage, place.stage)
    return stage
