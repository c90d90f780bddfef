"""Is the program of each pipeline stage its part of the whole program, every op of it once, in every mode?

`verify.stages.traced_stages` traces the programs, `verify.stages.compare` compares them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from shardproof.planner.inputs.run_modes import RunMode
from shardproof.planner.ir.dataflow import Entrance
from shardproof.planner.ir.findings import Finding, Place
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.numbering import Numbered, first_new
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.propagation.rules.random import draws
from shardproof.planner.tracing.drawn import DRAWN_PAST_TORCH
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.verify.findings import pp305, tp210
from shardproof.verify.proof.modes import NO_CACHE, not_asked
from shardproof.verify.proof.pipeline import check_chunks
from shardproof.verify.stages.case import Case
from shardproof.verify.stages.compare import Mismatch, StageComparison, StageProgram, layer_code
from shardproof.verify.stages.cutting import Cutting, between, laid_out
from shardproof.verify.stages.layer_index import numbered_parts
from shardproof.verify.stages.stage import StagePlace, absent
from shardproof.verify.stages.traced_stages import NoModeError, StageModels, TracedStage, TracedStages, received


@dataclass(frozen=True, slots=True)
class StagesVerdict:
    """Findings PP304 and PP305 of the stages of a case, TP210 where a mode was not asked, and the modes in which their programs
    were compared.
    """

    findings: tuple[Finding, ...] = ()
    modes: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


class Programs:
    """The programs of a model, with which the stages of several cases can be compared; each is traced once.

    Raises:
        TraceError: the whole model cannot be traced in evaluation.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self._models = loaded, StageModels(loaded)
        self.evaluation = TracedStages(self._models)
        self._traced: dict[RunMode, TracedStages | Finding | str] = {RunMode.EVALUATION: self.evaluation}

    @property
    def model(self) -> nn.Module:
        """The whole model, on meta."""
        return self.evaluation.model

    def _drawn(self) -> tuple[Finding, ...]:
        """Random numbers that the forward draws in evaluation: the stages draw others than one device."""
        drawn = next((op for op in self.graph.ops if draws(op.target)), None)
        if drawn is None and DRAWN_PAST_TORCH in self.graph.notes:
            return (tp210.drawn_in_stages("the forward", Place()),)
        return () if drawn is None else (tp210.drawn_in_stages(drawn.target, Place(None, drawn.module, drawn.source)),)

    @property
    def graph(self) -> Graph:
        """The whole program in evaluation."""
        return self.evaluation.whole.graph

    def in_mode(self, mode: RunMode) -> TracedStages | Finding | str:
        """The programs in a mode; a finding where it cannot be traced, an assumption where nobody can run the model in it."""
        if mode not in self._traced:
            try:
                self._traced[mode] = TracedStages(self._models, mode)
            except TraceError as error:
                self._traced[mode] = not_asked(self.loaded, mode, error)
            except NoModeError:
                self._traced[mode] = NO_CACHE
        return self._traced[mode]

    def check(self, case: Case) -> StagesVerdict:
        """The verdict on the stages of a case of this model, up to the first mode in which they differ.

        Raises:
            ValueError: the plan makes no such stages.
        """
        cutting = laid_out(case, self.model)
        if wrong := check_chunks(cutting.layout.chunks, cutting.layout.depth):
            return StagesVerdict(wrong)
        asked, assumed, undecided = list[str](), list[str](), list[Finding]()
        for mode in (RunMode.EVALUATION, RunMode.TRAINING, RunMode.DECODING):
            match self.in_mode(mode):
                case str() as assumption:
                    assumed.append(assumption)
                case Finding() as finding:
                    undecided.append(finding)
                case traced:
                    check = _StagesCheck(case, traced, cutting)
                    asked.append(mode.value)
                    if wrong := _in_mode(mode, check):
                        return StagesVerdict(wrong, tuple(asked), tuple(assumed))
                    if check.renumbered:  # absent layers of our stages write where the renumbered ones do
                        assumed.append("stages that number their layers anew decode as the whole model: not compared")
                        break
        return StagesVerdict((*undecided, *self._drawn()), tuple(asked), tuple(assumed))


def _in_mode(mode: RunMode, check: "_StagesCheck") -> tuple[Finding, ...]:
    try:
        found = tuple(check.findings())
    except TraceError as error:
        return (tp210.mode_not_traced(mode.value, str(error), Place(None, error.module or None, error.source)),)
    if mode is RunMode.EVALUATION:
        return found
    return tuple(replace(one, message=f"in {mode.value}, {one.message}") for one in found)


class _StagesCheck:
    """The stages of one case in one mode, as `verify.stages.compare` compares them with the whole program."""

    def __init__(self, case: Case, traced: TracedStages, cutting: Cutting) -> None:
        self.case, self.traced, self.cutting = case, traced, cutting
        self.model, self.whole, self.layout = traced.model, traced.whole, cutting.layout
        self.graph, self.renumbered = self.whole.graph, False
        self.comparison = StageComparison.of(self.graph, self.layout.layers, self.whole.numbers)

    def findings(self) -> Iterator[Finding]:
        """The finding of the first stage that differs; where none does, those of what the stages do together."""
        stages = list[TracedStage]()
        for number in self.case.staging.faults.order(len(self.layout.chunks)):
            place = between(self.case, self.model, self.cutting, number)
            needed = self.comparison.numbers_of(self._received_by(place, self.graph))
            if self.comparison.carried and needed != self.comparison.carried:
                first = self.layout.layer(self.layout.chunks[number].start)
                yield pp305.stage_differs(f"stage {number} receives what another stage needs", first)
                return
            try:
                stage = self.traced.stage(self.case, self.layout, place)
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

    def _program(self, stage: TracedStage, *, own: bool = True) -> StageProgram:
        place, forwards = stage.place, range(len(self.whole.script.calls))
        return StageProgram(
            stage.graph,
            self.layout.chunks[place.stage] if own else None,
            received=tuple(received(at, turn) for turn in forwards for at in range(len(place.receives.values))),
            sent=stage.sent,
            absent=absent(self.layout, place),
        )

    def _alike_inside(self, place: StagePlace) -> bool:
        """Whether a stage sends the right values although its layers get other arguments: compared with every op in its layers.

        A layer that is not given a value may compute the value itself.
        """
        whole = self.traced.opened
        try:
            stage = self.traced.stage(self.case, self.layout, place, every=True)
        except TraceError:
            return False
        carried = [whole.number[value] for value in self._received_by(place, whole.graph)]
        comparison = StageComparison(whole, stack=None, carried=carried)
        return comparison.mismatch(self._program(stage, own=False), self._sent_by(place, whole.graph)) is None

    def _other_code(self, stage: TracedStage) -> str | None:
        """The first own layer of a stage that runs other ops than in the whole program, such as one that counts calls."""
        paths = map(self.layout.layer, self.layout.chunks[stage.place.stage])
        return next((path for path in paths if layer_code(stage.graph, path) != layer_code(self.graph, path)), None)

    def _received_by(self, place: StagePlace, graph: Graph) -> list[int]:
        """The values of the whole program that a stage should receive, of each forward in turn."""
        return self._passing([live.entrances[0] for live in place.receives.values], graph)

    def _sent_by(self, place: StagePlace, graph: Graph) -> list[int]:
        """The values of the whole program that a stage should send; for the last stage, the model's first output."""
        if place.stage == len(self.layout.chunks) - 1:
            return self.whole.first_outputs(graph)
        return self._passing([live.entrances[0] for live in place.sends.values], graph)

    def _passing(self, entrances: list[Entrance], graph: Graph) -> list[int]:
        """The values of the whole program at entrances of layers, of each forward in turn."""
        entering = [self.whole.entering(self.layout.layer(one.layer), one, graph) for one in entrances]
        return [value for forward in zip(*entering, strict=True) for value in forward]

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
        whole, wholes, mine = self.comparison.whole, _first_arguments(self.graph), _first_arguments(ran.graph)
        for number in ran.own or ():
            path = self.layout.layer(number)
            for (name, leaf), value in wholes.get(path, {}).items() if path in mine else ():
                got = mine[path].get((name, leaf))
                if got is None or whole.number[value] != ran.number[got]:
                    return path, name, got, value
        return None

    def _together(self, programs: list[TracedStage]) -> Iterator[Finding]:
        yield from self._indices(programs)
        yield from self._trained(programs)
        yield from self._summed(programs)

    def _indices(self, programs: list[TracedStage]) -> Iterator[Finding]:
        """Where the model has a KV cache, layers have to keep their number in the whole model, for it is their place in the
        cache.
        """
        layers = self.model.get_submodule(self.layout.layers)
        for program in programs:
            for path, name in numbered_parts(layers, self.layout.chunks[program.place.stage]):
                part = f"{self.layout.layers}.{path}"
                mine, right = (getattr(m.get_submodule(part), name) for m in (program.model, self.model))
                self.renumbered = self.renumbered or mine != right
                if mine != right and self.traced.caches:
                    what = f"stage {program.place.stage} numbers {part} {mine} in the cache"
                    yield pp305.stage_differs(what, part, None, found=str(mine), needed=str(right))
                    return

    def _trained(self, programs: list[TracedStage]) -> Iterator[Finding]:
        """Every parameter that is trained on one device has to be trained on its stage."""
        trained = {name for name, value in self.model.named_parameters(remove_duplicate=False) if value.requires_grad}
        for program in programs:
            for name in _read(program.graph):
                if name in trained and not program.model.get_parameter(name).requires_grad:
                    yield pp305.stage_differs(
                        f"stage {program.place.stage} takes no gradient for {name}", name.rpartition(".")[0]
                    )
                    return

    def _summed(self, programs: list[TracedStage]) -> Iterator[Finding]:
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


def _first_arguments(graph: Graph) -> dict[str, dict[tuple[str, int], int]]:
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


def _read(graph: Graph) -> list[str]:
    """Names of the parameters and buffers that some op reads."""
    return [value.name for at, value in enumerate(graph.values) if value.name is not None and at in graph.users]


def _raises(stage: int, error: TraceError) -> Finding:
    module = error.module.removeprefix("stage.model").removeprefix(".") or None
    return pp305.stage_raises(stage, str(error), Place(module=module, source=error.source))
