"""Is the program of each pipeline stage its part of the whole program, every op of it once?

A stage is traced as it would run: the model's own forward, in which absent modules answer with zeros and received activations
replace the arguments of the stage's first layers. `verify.stages.compare` compares the traced stages with the whole program.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature

import torch
from torch import Tensor, nn

from shardproof.planner.inputs.example import TRACED, caching, example_inputs, taken
from shardproof.planner.inputs.run_modes import CACHE_NAMES
from shardproof.planner.ir.dataflow import Entrance
from shardproof.planner.ir.findings import Finding, Place
from shardproof.planner.ir.graph import Graph, Module
from shardproof.planner.ir.numbering import Numbered, Numbers, first_new, numbered
from shardproof.planner.loading.load import LoadedModel, build
from shardproof.planner.propagation.rules.random import draws
from shardproof.planner.tracing.decode_cache import places_matter
from shardproof.planner.tracing.programs import on_meta, other_modes
from shardproof.planner.tracing.trace import TraceError, trace
from shardproof.verify.findings import pp305, tp210
from shardproof.verify.proof.pipeline import check_chunks
from shardproof.verify.stages.case import KEPT, Case
from shardproof.verify.stages.compare import Mismatch, StageComparison, StageProgram, entering, layer_code
from shardproof.verify.stages.cutting import Cutting, between, laid_out, stage_of
from shardproof.verify.stages.layer_index import numbered_parts
from shardproof.verify.stages.left_state import left_values
from shardproof.verify.stages.record import Record, recorded
from shardproof.verify.stages.stage import Stage, StagePlace, absent
from shardproof.verify.stages.stage_layout import StageLayout


def check_programs(case: Case) -> tuple[Finding, ...]:
    """Findings PP304 and PP305 of the stages of a case; empty where each is the whole program's part.

    Raises:
        TraceError: the whole model cannot be traced.
        ValueError: the plan makes no such stages.
    """
    return Programs(case.loaded).check(case)


class _StageWithNamedInputs(nn.Module):
    """A stage that takes its received tensors as keyword arguments, as the inputs of a trace are given."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, **given: Tensor) -> object:
        received = [given.pop(_received(at)) for at in range(len(self.stage.receives.values))]
        return self.stage(*received, **given)


def _received(at: int) -> str:
    return f"received_{at}"


@dataclass(frozen=True, slots=True)
class _TracedStage:
    """One stage, traced; its names as the whole model has them."""

    place: StagePlace
    graph: Graph
    model: nn.Module


class Programs:
    """The whole program of a model, with which the stages of several cases can be compared."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.model = loaded, build(loaded)
        self.inputs, self.graph = fullest_trace(self.model)
        self.numbers = Numbers()
        self._programs: dict[object, _TracedStage | TraceError] = {}
        self._records: dict[tuple[str, ...], Record] = {}

    def check(self, case: Case) -> tuple[Finding, ...]:
        """As `check_programs`, of a case of this model."""
        cutting = laid_out(case, self.model)
        found = check_chunks(cutting.layout.chunks, cutting.layout.depth)
        found = found or tuple(_StagesCheck(case, self, cutting).findings())
        return found or (*self._left_in_other_modes(case, cutting.layout), *self._drawn())

    def _left_in_other_modes(self, case: Case, layout: StageLayout) -> tuple[Finding, ...]:
        """What layers of one stage leave for those of another in training or decoding; the first such read."""
        listed = next(entry.inputs for entry in case.plan.pp if layout.layers.endswith(entry.module))
        for subject in other_modes(on_meta(self.loaded)):
            for left in left_values(subject.graph, layout, listed):
                mode = subject.script.mode.value if subject.script is not None else ""
                what = f"in {mode}, {left.reader} reads what {left.writer} of another stage made"
                return (pp305.stage_differs(what, left.op.module, left.op),)
        return ()

    def _drawn(self) -> tuple[Finding, ...]:
        """Random numbers that the forward draws in evaluation: the stages draw others than one device."""
        drawn = next((op for op in self.graph.ops if draws(op.target)), None)
        return () if drawn is None else (tp210.drawn_in_stages(drawn.target, Place(None, drawn.module, drawn.source)),)

    @cached_property
    def caches(self) -> bool:
        """Whether layers need their own number to find their place in a KV cache; assumed where a cache cannot be traced."""
        names = [name for name in CACHE_NAMES if name in signature(type(self.model).forward).parameters]
        given: list[object] = []
        handle = self.model.register_forward_hook(lambda _, __, output: given.append(output))
        try:
            trace(self.model, {**example_inputs(self.model), **caching(self.model, True)})
        except TraceError:
            return bool(names)
        finally:
            handle.remove()
        return any(places_matter(getattr(output, name, None), TRACED.length) for output in given for name in names)

    def record(self, layout: StageLayout) -> Record:
        """The recorded calls of the single-device model, for absent modules to answer with."""
        if layout.named not in self._records:
            with recorded(self.model, layout.named) as record:
                trace(self.model, self.inputs)
            self._records[layout.named] = record
        return self._records[layout.named]

    @cached_property
    def opened(self) -> Numbered:
        """The whole program traced with every layer, each op numbered; in numbers of its own."""
        return numbered(trace(self.model, self.inputs, every=True), Numbers())

    def program(self, case: Case, layout: StageLayout, place: StagePlace, *, every: bool = False) -> "_TracedStage":
        """One traced stage (with `every` layer traced, none repeated), or the same from an earlier case."""
        key = (layout, place, case.staging.faults.of_stage(place.stage), every)
        if key not in self._programs:
            try:
                self._programs[key] = self._traced(case, layout, place, every=every)
            except TraceError as error:
                self._programs[key] = error
        found = self._programs[key]
        if isinstance(found, TraceError):
            raise found
        return found

    def _traced(self, case: Case, layout: StageLayout, place: StagePlace, *, every: bool) -> "_TracedStage":
        model = build(self.loaded)
        stage = stage_of(case, model, layout, place, torch.device("meta"))
        stage.record = self.record(layout)
        forms = stage.forms(stage.receives)
        received = {_received(at): torch.empty_like(form, device="meta") for at, form in enumerate(forms)}
        graph = trace(_StageWithNamedInputs(stage), self.inputs | received, hooked=True, every=every)
        return _TracedStage(place, _inside(graph, "stage.model"), model)


class _StagesCheck:
    """The stages of one case, as `verify.stages.compare` compares them with the whole program."""

    def __init__(self, case: Case, programs: Programs, cutting: Cutting) -> None:
        self.case, self.programs, self.cutting = case, programs, cutting
        self.model, self.graph, self.layout = programs.model, programs.graph, cutting.layout
        self.comparison = StageComparison.of(self.graph, self.layout.layers, programs.numbers)

    def findings(self) -> Iterator[Finding]:
        """The finding of the first stage that differs; where none does, those of what the stages do together."""
        stages = list[_TracedStage]()
        for number in self.case.staging.faults.order(len(self.layout.chunks)):
            place = between(self.case, self.model, self.cutting, number)
            needed = self.comparison.numbers_of(self._received_by(place, self.graph))
            if self.comparison.carried and needed != self.comparison.carried:
                first = self.layout.layer(self.layout.chunks[number].start)
                yield pp305.stage_differs(f"stage {number} receives what another stage needs", first)
                return
            try:
                stage = self.programs.program(self.case, self.layout, place)
            except TraceError as error:
                yield _raises(number, error)
                return
            wanted = self._sent_by(place, self.graph)
            mismatch = self.comparison.mismatch(self._program(stage), wanted)
            if mismatch is not None:
                if not self._alike_inside(place):
                    yield self._differs(number, mismatch)
                    return
                self.comparison.carried = self.comparison.numbers_of(wanted)
            elif (layer := self._other_code(stage)) is not None and not self._alike_inside(place):
                yield pp305.stage_differs(f"stage {number} runs another program in {layer} than the whole model", layer)
                return
            stages.append(stage)
        yield from self._together(stages)

    def _program(self, stage: _TracedStage, *, own: bool = True) -> StageProgram:
        place = stage.place
        return StageProgram(
            stage.graph,
            self.layout.chunks[place.stage] if own else None,
            received=tuple(_received(at) for at in range(len(place.receives.values))),
            sent=tuple(value for _, value in stage.graph.outputs),
            absent=absent(self.layout, place),
        )

    def _alike_inside(self, place: StagePlace) -> bool:
        """Whether a stage sends the right values although its layers get other arguments: compared with every op in its layers.

        A layer that is not given a value may compute the value itself.
        """
        whole = self.programs.opened
        try:
            stage = self.programs.program(self.case, self.layout, place, every=True)
        except TraceError:
            return False
        received = [whole.number[value] for value in self._received_by(place, whole.graph)]
        comparison = StageComparison(whole, stack=None, carried=received)
        return comparison.mismatch(self._program(stage, own=False), self._sent_by(place, whole.graph)) is None

    def _other_code(self, stage: _TracedStage) -> str | None:
        """The first own layer of a stage that runs other ops than in the whole program, such as one that counts calls."""
        paths = map(self.layout.layer, self.layout.chunks[stage.place.stage])
        return next((path for path in paths if layer_code(stage.graph, path) != layer_code(self.graph, path)), None)

    def _received_by(self, place: StagePlace, graph: Graph) -> list[int]:
        """The values of the whole program that a stage should receive."""
        return [self._entering(live.entrances[0], graph) for live in place.receives.values]

    def _sent_by(self, place: StagePlace, graph: Graph) -> list[int]:
        """The values of the whole program that a stage should send; for the last stage, the model's first output."""
        if place.stage == len(self.layout.chunks) - 1:
            return [graph.outputs[0][1]]
        return [self._entering(live.entrances[0], graph) for live in place.sends.values]

    def _entering(self, entrance: Entrance, graph: Graph) -> int:
        return entering(graph, self.layout.layer(entrance.layer), entrance)

    def _differs(self, stage: int, mismatch: Mismatch) -> Finding:
        """Explained by the first wrong argument of an own layer, where there is one, else by an op outside the layers."""
        whole, ran = self.comparison.whole, mismatch.ran
        layer = self._layer_differs(ran)
        if layer is not None:
            path, name, mine, right = layer
            op = first_new(ran, mine, whole) if mine is not None else None
            if op is not None:
                what = f"applies {op.target} of {op.module or 'the model'} to what {path} takes as {name}"
                return pp305.stage_differs(f"stage {stage} {what}", op.module, op)
            op = first_new(whole, right, ran)
            more = f": {op.target} of {op.module or 'the model'} is left out" if op is not None else ""
            what = f"stage {stage} does not give {path} the {name} of the whole model{more}"
            return pp305.stage_differs(what, path, op)
        op, extra = self.comparison.explained(mismatch)
        if op is None:
            return pp305.stage_differs(f"stage {stage} gives another value", None)
        does = "runs" if extra else "does not run"
        return pp305.stage_differs(f"stage {stage} {does} {op.target} of {op.module or 'the model'}", op.module, op)

    def _layer_differs(self, ran: Numbered) -> tuple[str, str, int | None, int] | None:
        """The first own layer with another argument than in the whole program: its path, the argument, both values."""
        whole, wholes, mine = self.comparison.whole, _given(self.graph), _given(ran.graph)
        for number in ran.own or ():
            path = self.layout.layer(number)
            for (name, leaf), value in wholes.get(path, {}).items() if path in mine else ():
                got = mine[path].get((name, leaf))
                if got is None or whole.number[value] != ran.number[got]:
                    return path, name, got, value
        return None

    def _together(self, programs: list[_TracedStage]) -> Iterator[Finding]:
        yield from self._indices(programs)
        yield from self._trained(programs)
        yield from self._summed(programs)

    def _indices(self, programs: list[_TracedStage]) -> Iterator[Finding]:
        """Where the model has a KV cache, layers have to keep their number in the whole model, for it is their place in the
        cache.
        """
        layers = self.model.get_submodule(self.layout.layers)
        for program in programs:
            for path, name in numbered_parts(layers, self.layout.chunks[program.place.stage]):
                part = f"{self.layout.layers}.{path}"
                mine, right = (getattr(m.get_submodule(part), name) for m in (program.model, self.model))
                if mine != right and self.programs.caches:
                    what = f"stage {program.place.stage} numbers {part} {mine} in the cache"
                    yield pp305.stage_differs(what, part, None, found=str(mine), needed=str(right))
                    return

    def _trained(self, programs: list[_TracedStage]) -> Iterator[Finding]:
        """Every parameter that is trained on one device has to be trained on its stage."""
        trained = {name for name, value in self.model.named_parameters(remove_duplicate=False) if value.requires_grad}
        for program in programs:
            for name in _read(program.graph):
                if name in trained and not program.model.get_parameter(name).requires_grad:
                    yield pp305.stage_differs(
                        f"stage {program.place.stage} takes no gradient for {name}", name.rpartition(".")[0]
                    )
                    return

    def _summed(self, programs: list[_TracedStage]) -> Iterator[Finding]:
        """The gradient of a weight that several stages read has to be summed over these stages."""
        not_summed = self.case.staging.faults.not_summed()
        readers: dict[str, list[int]] = {}
        for program in programs:
            for name in _read(program.graph):
                readers.setdefault(name, []).append(program.place.stage)
        for name, stages in readers.items():
            if name in not_summed and len(stages) > 1:
                what = f"the gradient of {name} is not summed over stages {' and '.join(map(str, stages))}"
                yield pp305.stage_differs(what, name.rpartition(".")[0])


def _given(graph: Graph) -> dict[str, dict[tuple[str, int], int]]:
    """By module: the arguments of its first call, as (name, which tensor of it) -> value."""
    found: dict[str, dict[tuple[str, int], int]] = {}
    for call in graph.calls:
        if call.module not in found:
            names = [name for name, _ in call.arguments]
            leaves = [names[:at].count(name) for at, name in enumerate(names)]
            found[call.module] = {
                (name, leaf): value for (name, value), leaf in zip(call.arguments, leaves, strict=True)
            }
    return found


def fullest_trace(model: nn.Module) -> tuple[dict[str, object], Graph]:
    """The inputs with the most arguments that the model takes (mask, positions, `logits_to_keep`), and its trace with them."""
    if taken(model) is None:
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


def _read(graph: Graph) -> list[str]:
    """Names of the parameters and buffers that some op reads."""
    return [value.name for at, value in enumerate(graph.values) if value.name is not None and at in graph.users]


def _raises(stage: int, error: TraceError) -> Finding:
    module = error.module.removeprefix("stage.model").removeprefix(".") or None
    return pp305.stage_raises(stage, str(error), Place(module=module, source=error.source))
