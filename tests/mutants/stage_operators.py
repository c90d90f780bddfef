"""Mutation operators on stage programs: mistakes that runtimes of pipeline stages make, one at a time.

The names P2, P4, ... are those of the project's list of faults. What each does is data (`tests.mutants.injected_faults`), so
that the proof traces, and the ranks run, the same mistake.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from shardproof.planner.ir.dataflow import stream
from shardproof.planner.ir.graph import Graph, ModuleCall
from shardproof.verify.stages.layer_index import index_attributes
from shardproof.verify.stages.stage_layout import StageLayout
from tests.mutants.injected_faults import FaultKind, InjectedFault


@dataclass(frozen=True, slots=True)
class StageMutant:
    """One mistake: the operator, the injected faults that make it, and over how many stages."""

    operator: str
    faults: tuple[InjectedFault, ...]
    stages: int = 2

    @property
    def name(self) -> str:
        """A name within one model."""
        return f"{self.operator}: {'; '.join(map(str, self.faults))}"


@dataclass(frozen=True, slots=True)
class StagedModel:
    """A model with its program (the caller's mask among its inputs) and its two stages."""

    model: nn.Module
    graph: Graph
    layout: StageLayout

    @property
    def calls(self) -> dict[str, ModuleCall]:
        """The first call of each module."""
        return {call.module: call for call in reversed(self.graph.calls)}

    def layer_calls(self) -> Iterator[tuple[int, ModuleCall]]:
        """Every layer that ran, with its first call."""
        for number in range(self.layout.depth):
            if (call := self.calls.get(self.layout.layer(number))) is not None:
                yield number, call


def stage_mutants(subject: StagedModel) -> Iterator[StageMutant]:
    """Every single mistake that this model gives room for."""
    yield from _preamble(subject)
    yield from _arguments(subject)
    yield from _kinds(subject)
    yield from _weights(subject)
    if next(index_attributes(subject.model.get_submodule(subject.layout.layers)), None) is not None:
        yield StageMutant("P8 cache index local", (InjectedFault(FaultKind.LOCAL_INDEX),))
    if subject.layout.depth >= 4:
        yield StageMutant(
            "P11 wrong peer", (InjectedFault(FaultKind.WRONG_PEER, stage=-1, layer=1, other=2),), stages=4
        )
    yield StageMutant("P12 gradients lost at set-up", (InjectedFault(FaultKind.FROZEN),))
    yield StageMutant("P15 placeholder without attributes", (InjectedFault(FaultKind.BARE_PLACEHOLDER),))


def _preamble(subject: StagedModel) -> Iterator[StageMutant]:
    """What lies between the embedding and the layers, and between the layers and the head."""
    calls, layout, values = subject.calls, subject.layout, subject.graph.values
    first = calls[layout.layer(0)]
    entering = first.arguments[0][1]
    embedding = _path_of(subject.model, subject.model.get_input_embeddings())  # type: ignore[operator]  # a PreTrainedModel
    given = calls[embedding].outputs if embedding in calls else ()
    if embedding in layout.before and len(given) == 1 and values[given[0]].shape == values[entering].shape:
        yield StageMutant("P2 preamble again", (InjectedFault(FaultKind.PREAMBLE_AGAIN, embedding),))
        if given[0] != entering:
            yield StageMutant("P2 preamble skipped", (InjectedFault(FaultKind.PREAMBLE_SKIPPED, embedding, stage=0),))
        for other in layout.before:
            if other != embedding and other in calls and isinstance(subject.model.get_submodule(other), nn.Embedding):
                kept = InjectedFault(FaultKind.PREAMBLE_AGAIN, embedding), InjectedFault(FaultKind.MODULE_KEPT, other)
                yield StageMutant("P4 positions added again", kept)
    for norm in layout.after:
        call = calls.get(norm)
        if call is not None and len(call.arguments) == len(call.outputs) == 1 and _alike(subject, call):
            yield StageMutant("P3 norm on every stage", (InjectedFault(FaultKind.MODULE_APPLIED, norm, stage=0),))


def _alike(subject: StagedModel, call: ModuleCall) -> bool:
    values = subject.graph.values
    return values[call.arguments[0][1]].shape == values[call.outputs[0]].shape


def _path_of(model: nn.Module, module: nn.Module) -> str:
    return next((path for path, other in model.named_modules() if other is module), "")


def _arguments(subject: StagedModel) -> Iterator[StageMutant]:
    """What the layers and the model itself are given besides the hidden states."""
    flow = stream(subject.graph)
    names: dict[str, bool] = {}
    for _, call in subject.layer_calls():
        for name, value in call.arguments:
            if name != call.arguments[0][0]:
                names[name] = names.get(name, False) or value in flow
    for name, learned in names.items():
        yield StageMutant(
            f"{'P7' if learned else 'P5'} not passed to the layers",
            (InjectedFault(FaultKind.ARGUMENT_NOT_PASSED, name),),
        )
    for name in ("attention_mask", "position_ids"):
        if name in dict(subject.graph.inputs):
            yield StageMutant("P5 not handed to the stage", (InjectedFault(FaultKind.INPUT_NOT_PASSED, name),))
    yield StageMutant("P13 logits_to_keep dropped", (InjectedFault(FaultKind.INPUT_NOT_PASSED, "logits_to_keep"),))


def _kinds(subject: StagedModel) -> Iterator[StageMutant]:
    """A layer of the second stage is given what an earlier layer of another kind was given."""
    values = subject.graph.values
    given = [
        (name, number, value)
        for number, call in subject.layer_calls()
        for name, group in groupby(call.arguments, key=lambda argument: argument[0])
        for value in [next(group)[1]]
        if name != call.arguments[0][0]
    ]
    told: set[str] = set()
    for name, layer, value in given:
        for other_name, other, another in given:
            alike = name == other_name and other < layer and values[value].shape == values[another].shape
            if alike and value != another and layer in subject.layout.chunks[1] and name not in told:
                told.add(name)
                mistake = InjectedFault(FaultKind.ARGUMENT_OF_OTHER_LAYER, name, layer=layer, other=other)
                yield StageMutant("P6 another kind's argument", (mistake,))


def _weights(subject: StagedModel) -> Iterator[StageMutant]:
    """Weights with two names, of which one lies on the last stage."""
    names: dict[int, list[str]] = {}
    for name, value in subject.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    last = tuple(f"{path}." for path in subject.layout.after)
    for tied in names.values():
        late = [name for name in tied if name.startswith(last)]
        if late and len(late) < len(tied):
            yield StageMutant("P9 tied weight absent", (InjectedFault(FaultKind.UNTIED, late[0]),))
            yield StageMutant("P10 tied gradient not summed", (InjectedFault(FaultKind.GRADIENT_NOT_SUMMED, tied[0]),))
