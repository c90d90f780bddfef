"""The program of a whole model in one mode, and the programs of the stages that cases cut it into, each traced once.

A stage is traced as it would run: the model's own forward, in which absent modules answer with zeros and received activations
replace the arguments of the stage's first layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature

import torch
from torch import Tensor, nn

from shardproof.planner.inputs.example import TRACED, accept_form, accepted_form, caching, example_inputs
from shardproof.planner.inputs.run_modes import RunMode, Script, cache_in
from shardproof.planner.ir.dataflow import Entrance
from shardproof.planner.ir.graph import Graph, Module, ModuleCall
from shardproof.planner.ir.numbering import Numbered, Numbers, numbered
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.tracing.decode_cache import places_matter
from shardproof.planner.tracing.programs import on_meta, subject_in, subject_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.session import only_traced
from shardproof.planner.tracing.trace import trace, trace_settled
from shardproof.planner.transformers_facts.caches import CACHE_OBJECTS
from shardproof.verify.stages.case import KEPT, Case
from shardproof.verify.stages.cutting import stage_of
from shardproof.verify.stages.record import Record, recorded_forwards, with_writes_of_repeated_layers
from shardproof.verify.stages.stage import Stage, StagePlace
from shardproof.verify.stages.stage_layout import StageLayout


@dataclass(frozen=True, slots=True)
class TracedStage:
    """One stage, traced; its names as the whole model has them. `sent` are the values that it sends, of each forward in turn."""

    place: StagePlace
    graph: Graph
    model: nn.Module
    sent: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WholeProgram:
    """The program of the whole model in one mode: what is run, its graph, and the numbers that it shares with its stages."""

    script: Script
    graph: Graph
    numbers: Numbers

    def entering(self, layer: str, entrance: Entrance, graph: Graph | None = None) -> list[int]:
        """The values that enter the layer at this path in its first call of each forward, by this or another trace of it.

        Raises:
            TraceError: a forward does not call the layer so.
        """
        found = list[int]()
        for calls in _forwards(graph or self.graph):
            call = next((one for one in calls if one.module == layer), None)
            given = [value for name, value in call.arguments if name == entrance.argument] if call is not None else []
            if entrance.leaf >= len(given):
                raise TraceError(f"a later forward does not give {layer} its {entrance.argument}", layer, None)
            found.append(given[entrance.leaf])
        return found

    def first_outputs(self, graph: Graph | None = None) -> list[int]:
        """The first output of each forward."""
        first: dict[str, int] = {}
        for name, value in (graph or self.graph).outputs:
            first.setdefault(name.partition(".")[0] if len(self.script.calls) > 1 else "", value)
        return list(first.values())


def _forwards(graph: Graph) -> list[list[ModuleCall]]:
    """The calls of modules in each forward of the model."""
    found: list[list[ModuleCall]] = []
    for call in graph.calls:
        if call.module == "":
            found.append([])
        elif found:
            found[-1].append(call)
    return found


class StageModels:
    """The whole model on meta and the stages of several cases, each built once."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.whole = loaded, only_traced(build(loaded))
        self._stages: dict[object, _StageWithNamedInputs] = {}

    def stage(self, case: Case, layout: StageLayout, place: StagePlace) -> "_StageWithNamedInputs":
        """One stage, with the faults that the case injects."""
        key = (layout, place, case.staging.faults.of_stage(place.stage))
        if key not in self._stages:
            made = stage_of(case, build(self.loaded), layout, place, torch.device("meta"))
            self._stages[key] = _StageWithNamedInputs(made)
            only_traced(self._stages[key])
        return self._stages[key]


class NoModeError(LookupError):
    """The model has no such mode: its forward takes or returns no cache to decode through."""


class TracedStages:
    """The whole program of a model in one mode, with which the stages of several cases can be compared.

    Raises:
        TraceError: the whole model cannot be traced in this mode.
        NoModeError: the model has no such mode.
    """

    def __init__(self, models: StageModels, mode: RunMode = RunMode.EVALUATION) -> None:
        self.models, self.mode, self.model = models, mode, models.whole
        self.whole = self._whole()
        self._stages: dict[object, TracedStage | TraceError] = {}
        self._records: dict[tuple[str, ...], list[Record]] = {}

    def _whole(self) -> WholeProgram:
        shared = on_meta(self.models.loaded)
        subject_of(shared)
        if (form := accepted_form(shared)) is not None:
            accept_form(self.model, form)
        if self.mode is RunMode.EVALUATION:
            inputs, graph = fullest_trace(self.model)
            return WholeProgram(Script(self.mode, (caching(self.model, False) | inputs,)), graph, Numbers())
        subject = subject_in(shared, self.mode)
        if subject is None or subject.script is None:
            raise NoModeError(f"{type(self.model).__name__} has no {self.mode.value}.")
        return WholeProgram(subject.script, subject.graph, Numbers())

    @cached_property
    def caches(self) -> bool:
        """Whether layers need their own number to find their place in a KV cache; assumed where a cache cannot be traced."""
        names = [name for name in CACHE_OBJECTS if name in signature(type(self.model).forward).parameters]
        given: list[object] = []
        handle = self.model.register_forward_hook(lambda _, __, output: given.append(output))
        try:
            trace(self.model, {**example_inputs(self.model), **caching(self.model, True)})
        except TraceError:
            return bool(names)
        finally:
            handle.remove()
        return any(places_matter(getattr(output, name, None), TRACED.length) for output in given for name in names)

    def records(self, layout: StageLayout) -> list[Record]:
        """The recorded calls of the single-device model in each forward, for absent modules to answer with."""
        if layout.named not in self._records:
            records, graph = self._recorded(layout, every=False)
            placed = [with_writes_of_repeated_layers(record, self.model, graph) for record in records]
            known = [record for record in placed if record is not None]
            self._records[layout.named] = known if len(known) == len(placed) else self._recorded(layout, every=True)[0]
        return self._records[layout.named]

    def _recorded(self, layout: StageLayout, *, every: bool) -> tuple[list[Record], Graph]:
        with recorded_forwards(self.model, layout.named, apart=True) as records:
            graph = trace_settled(self.model, self.whole.script, every=every)
        return records[-len(self.whole.script.calls) :], graph

    @cached_property
    def opened(self) -> Numbered:
        """The whole program traced with every layer, each op numbered; in numbers of its own."""
        return numbered(trace_settled(self.model, self.whole.script, every=True), Numbers())

    def stage(self, case: Case, layout: StageLayout, place: StagePlace, *, every: bool = False) -> TracedStage:
        """One traced stage (with `every` layer traced, none repeated), or the same from an earlier case.

        Raises:
            TraceError: its forward raises.
        """
        key = (layout, place, case.staging.faults.of_stage(place.stage), every)
        if key not in self._stages:
            try:
                self._stages[key] = self._traced(case, layout, place, every=every)
            except TraceError as error:
                self._stages[key] = error
        found = self._stages[key]
        if isinstance(found, TraceError):
            raise found
        return found

    def _traced(self, case: Case, layout: StageLayout, place: StagePlace, *, every: bool) -> TracedStage:
        stage = self.models.stage(case, layout, place)
        stage.begin(self.records(layout))
        calls = tuple({**call, **stage.received_in(number)} for number, call in enumerate(self.whole.script.calls))
        graph = trace_settled(stage, replace(self.whole.script, calls=calls), hooked=True, every=every)
        sent = tuple(value for name, value in graph.outputs if _SENT in name.split("."))
        return TracedStage(place, _inside(graph, "stage.model"), stage.stage.model, sent)


_SENT = "sent"


class _StageWithNamedInputs(nn.Module):
    """A stage that takes its received tensors as keyword arguments, as a trace gives its inputs, and hands on its cache."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage, self.records, self.turn = stage, list[Record](), 0

    def begin(self, records: list[Record]) -> None:
        """Run next with the single-device model's calls in each forward."""
        self.records, self.turn = records, 0

    @property
    def base_model(self) -> nn.Module:
        """The model whose forward takes what this one is given."""
        return self.stage.model

    def received_in(self, forward: int) -> dict[str, Tensor]:
        """What the stage receives in one of the forwards, on the meta device."""
        self.stage.record = self.records[forward]
        forms = self.stage.forms(self.stage.receives)
        made = (torch.empty_like(form, device="meta") for form in forms)
        # What a stage receives depends on weights of another one: autograd follows it.
        return {received(at): value.requires_grad_(value.is_floating_point()) for at, value in enumerate(made)}

    def forward(self, **given: Tensor) -> Mapping[str, object]:
        self.stage.record = self.records[self.turn % len(self.records)]
        self.turn += 1
        tensors = [given.pop(received(at)) for at in range(len(self.stage.receives.values))]
        sent = self.stage(*tensors, **given)
        return {_SENT: sent, **cache_in(self.stage.model, self.stage.output)}


def received(at: int, forward: int = 0) -> str:
    """The name of a stage's input for a tensor that it receives; of a later forward as `Script.tensors` numbers it."""
    return f"received_{at}#{forward}" if forward else f"received_{at}"


def fullest_trace(model: nn.Module) -> tuple[dict[str, object], Graph]:
    """The inputs with the most arguments that the model takes (mask, positions, `logits_to_keep`), and its trace with them."""
    if accepted_form(model) is None:
        trace(model)  # which of the forms of inputs it takes
    inputs: dict[str, object] = dict(example_inputs(model))
    names = signature(model.forward).parameters
    ids = inputs.get("input_ids")
    form = ids if isinstance(ids, Tensor) else next(value for value in inputs.values() if isinstance(value, Tensor))
    mask = {"attention_mask": torch.empty(form.shape[:2], dtype=torch.long, device="meta")}
    positions = {"position_ids": torch.empty(form.shape[:2], dtype=torch.long, device="meta")}
    encoded = "decoder_input_ids" in inputs
    more: list[dict[str, object]] = [{**mask, **positions, "logits_to_keep": KEPT}, {**mask, "logits_to_keep": KEPT}]
    more = [{}] if encoded and "attention_mask" not in names else [*more, dict(mask), {}]
    for extra in more:
        given = inputs | {name: value for name, value in extra.items() if name in names}
        try:
            return given, trace(model, given)
        except TraceError:
            if not extra:
                raise
    raise AssertionError("the last attempt has no extra argument, and returns or raises")


def _inside(graph: Graph, prefix: str) -> Graph:
    """A graph with module paths and value names relative to `prefix`."""

    def name(path: str) -> str:
        return path.removeprefix(prefix).removeprefix(".")

    def module(one: Module) -> Module:
        return replace(one, path=name(one.path), repeats=None if one.repeats is None else name(one.repeats))

    return replace(
        graph,
        modules=tuple(module(one) for one in graph.modules if one.path.startswith(prefix)),
        values=tuple(v if v.name is None else replace(v, name=name(v.name)) for v in graph.values),
        ops=tuple(replace(op, module=name(op.module)) for op in graph.ops),
        calls=tuple(replace(call, module=name(call.module)) for call in graph.calls),
    )
