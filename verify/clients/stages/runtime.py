"""The stages of clients that run the whole forward on each stage, with placeholders for the modules that it lacks.

How a client cuts a model is in its own folder, or in `verify.clients.stages.keyed`. Here such stages are compared
with the whole program.
"""

from collections.abc import Iterator
from functools import wraps
from inspect import signature
from typing import Protocol

import torch
from torch import nn

from shardproof.planner.inputs.example import TRACED, attempts, example_inputs
from shardproof.planner.ir.findings import Finding, Place
from shardproof.planner.ir.graph import Graph
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.trace import trace
from shardproof.verify.findings import be433
from shardproof.verify.stages.compare import StageComparison, StageProgram, hidden_states_into


class StageRuntime(Protocol):
    """How a client makes pipeline stages of a model."""

    def own(self, count: int, stage: int, stages: int) -> range:
        """The layers of one of `stages`, of `count` in all."""
        ...

    def cut(self, model: nn.Module, own: range, *, first: bool, last: bool) -> None:
        """Put the client's placeholders in the place of the modules that the stage lacks."""
        ...

    def inputs(self, model: nn.Module, *, first: bool) -> dict[str, torch.Tensor]:
        """What the client gives a stage, on the meta device; the hidden states of a later one as `inputs_embeds`."""
        ...


def compare_stages(
    runtime: StageRuntime, client: str, loaded: LoadedModel, graph: Graph, *, stack: str, depth: int, stages: int
) -> Iterator[Finding]:
    """Finding BE433 of the first stage that is not its part of the whole program `graph`.

    `stack` is the path of the list of layers, of which `depth` are dealt out to so many `stages`.
    """
    comparison = StageComparison.of(graph, stack)
    for stage in range(stages):
        own, first, last = runtime.own(depth, stage, stages), stage == 0, stage == stages - 1
        model = build(loaded)
        runtime.cut(model, own, first=first, last=last)
        try:
            traced = trace(model, runtime.inputs(model, first=first))
        except TraceError as error:
            place = Place(module=error.module or None, source=error.source)
            yield be433.stage_raises(stage, client, str(error), place)
            return
        program = StageProgram(traced, own, received=("inputs_embeds",), sent=(traced.outputs[0][1],))
        wanted = graph.outputs[0][1] if last else hidden_states_into(graph, f"{stack}.{own.stop}")
        mismatch = comparison.mismatch(program, (wanted,))
        if mismatch is not None:
            op, extra = comparison.explained(mismatch)
            yield be433.stage_differs(stage, client, op, more=extra)
            return


def run_base_only(model: nn.Module, prefix: str) -> None:
    """Make the forward of a head model that of its base model, which is at `prefix`."""
    base = model.get_submodule(prefix)
    if base is not model:
        vars(model)["forward"] = wraps(base.forward)(lambda *args, **kwargs: base(*args, **kwargs))


def engine_inputs(model: nn.Module, *, first: bool) -> dict[str, torch.Tensor]:
    """What an engine gives a stage: token ids or received hidden states, and positions where the forward takes them."""
    given = received_inputs(model) if not first else {"input_ids": _token_ids(model)}
    form = next(iter(given.values()))
    if "position_ids" in signature(model.forward).parameters:
        given["position_ids"] = torch.empty(form.shape[:2], dtype=torch.long, device="meta")
    return given


def received_inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """Received hidden states, of the shape [rows, tokens, width], on the meta device."""
    value = _token_ids(model)
    width: int = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]  # a config
    dtype = next(model.parameters()).dtype
    return {"inputs_embeds": torch.empty((*value.shape[:2], width), dtype=dtype, device="meta")}


def _token_ids(model: nn.Module) -> torch.Tensor:
    """Token ids of the shape [rows, tokens], also for a forward that names none of its arguments."""
    named = example_inputs(model).get("input_ids") if attempts(model) else None
    return torch.empty((TRACED.rows, TRACED.length), dtype=torch.long, device="meta") if named is None else named
