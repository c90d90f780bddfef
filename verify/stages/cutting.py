"""TODO."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import join
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.verify.stages.case import Case
from shardproof.verify.stages.cuts import Crossing, crossing, possible, sent, traced
from shardproof.verify.stages.departing import depart, set_up
from shardproof.verify.stages.departures import kept
from shardproof.verify.stages.stage import Between, Layout, Stage, dealt, layout_of, moved


@dataclass(frozen=True, slots=True)
class Cutting:
    """Where a model is cut into stages, and the program that says what crosses the cuts (None where it cannot be traced)."""

    graph: Graph | None
    layout: Layout


def laid_out(case: Case, single: nn.Module) -> Cutting:
    """The stages that are asked for; even ones avoid cuts that cannot be made. `ValueError` where the plan makes none."""
    plan, staging = case.plan, case.staging
    stages = case.pp * staging.rounds
    layout = layout_of(single, plan.pp, plan.head_pp, base_prefix=base_prefix(single), stages=stages)
    graph = traced(case.loaded)
    if staging.bounds or staging.overlap:
        chunks = dealt(layout.depth, stages, bounds=staging.bounds, overlap=staging.overlap)
    else:
        chunks = moved(layout.chunks, possible(graph, layout.layers, layout.depth, layout.before))
    return Cutting(graph, replace(layout, chunks=chunks))


def between(case: Case, single: nn.Module, cutting: Cutting, stage: int) -> Between:
    """What passes the cuts before and after a stage: of what must, what the plan lists."""
    layout, prefix = cutting.layout, base_prefix(single)
    listed = next(entry.inputs for entry in case.plan.pp if join(prefix, entry.module) == layout.layers)
    start, end = (
        sent(crossing(cutting.graph, cut, single), listed, single.get_submodule(layout.layer(0))) if cut else Crossing()
        for cut in layout.cuts(stage)
    )
    return Between(stage, start, end, kept(case.staging.departures, stage))


def stage_of(case: Case, model: nn.Module, layout: Layout, place: Between, device: torch.device) -> Stage:
    """A stage of a model that has its weights, or the forms of them; with the departures that the case asks for."""
    departures = case.staging.departures
    set_up(model, layout, departures, place.stage)
    stage = Stage(model, layout, device, place)
    depart(stage, departures, place.stage)
    return stage
