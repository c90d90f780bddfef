"""A model on meta with its programs, the single device's and a rank's: traced once, for all that is asked of them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from shardproof.planner.inputs.example import accept_form, accepted_form
from shardproof.planner.inputs.run_modes import NoCacheError, RunMode, Script, has_eager, scripts
from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.graph import Graph
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.tracing.rank_program import trace_local
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.session import private_copy, structural_copy
from shardproof.planner.tracing.trace import settle, trace, trace_script


@dataclass(frozen=True)
class Subject:
    """A model on meta, traced in one mode, with the prefix of its base model; `script` is what was run, None of evaluation."""

    model: nn.Module
    graph: Graph
    prefix: str
    script: Script | None = None
    evaluation: Graph | None = None
    """The program in evaluation, where this is another: what a plan's entries lie on is read off it in every mode."""

    @property
    def reference(self) -> Graph:
        """The program in evaluation."""
        return self.graph if self.evaluation is None else self.evaluation


_graphs: "WeakKeyDictionary[nn.Module, tuple[Graph, nn.Module | None]]" = WeakKeyDictionary()
"""Of each model its program in evaluation, and the model as its first forward made it, where that exchanges modules."""


def subject_of(model: nn.Module) -> Subject:
    """A model on meta with its program in evaluation; who changes the model afterwards asks `trace` for another.

    Raises:
        TraceError: the forward cannot run on meta tensors.
    """
    if model not in _graphs:
        with private_copy(model) as own:
            graph = trace(own)
            if (form := accepted_form(own)) is not None:
                accept_form(model, form)
            exchanged = [path for path, _ in own.named_modules()] != [path for path, _ in model.named_modules()]
            _graphs[model] = graph, structural_copy(own) if exchanged else None
    graph, exchanged_model = _graphs[model]
    runs = exchanged_model if exchanged_model is not None else model
    return Subject(runs, graph, base_prefix(runs))


_other_modes: "WeakKeyDictionary[nn.Module, dict[RunMode, Subject | TraceError | None]]" = WeakKeyDictionary()


def subject_in(model: nn.Module, mode: RunMode) -> Subject | None:
    """A model on meta with its program in a mode; None where the model has no such mode (no cache to decode through, no attention
    of its own).

    Raises:
        TraceError: no form of what the mode runs can be traced; that of the fullest form.
    """
    base = subject_of(model)
    if mode is RunMode.EVALUATION:
        return base
    kept = _other_modes.setdefault(model, {})
    if mode not in kept:
        kept[mode] = _traced_in(model, base, mode)
    found = kept[mode]
    if isinstance(found, TraceError):
        raise found
    return found


def other_modes(model: nn.Module) -> tuple[Subject, ...]:
    """A model in every mode but evaluation that it has and that can be traced."""
    found = []
    for mode in (RunMode.TRAINING, RunMode.DECODING, RunMode.EAGER):
        with suppress(TraceError):
            found.append(subject_in(model, mode))
    return tuple(subject for subject in found if subject is not None)


def _traced_in(model: nn.Module, base: Subject, mode: RunMode) -> Subject | TraceError | None:
    first: TraceError | None = None
    if mode is RunMode.EAGER and not has_eager(model):
        return None
    with private_copy(model) as own:
        for script in scripts(own, mode):
            try:
                return replace(base, graph=_settled_in(model, own, script), script=script, evaluation=base.graph)
            except TraceError as error:
                if isinstance(error.__cause__, NoCacheError):
                    return None
                first = first or error
    return first


_other_sides: "WeakKeyDictionary[nn.Module, dict[tuple[RunMode, Source], tuple[Graph, Script] | TraceError]]"
_other_sides = WeakKeyDictionary()


_changed: "WeakKeyDictionary[nn.Module, dict[RunMode, nn.Module]]" = WeakKeyDictionary()
"""Of each model whose first forward in a mode changes it, the model as it is in that mode afterwards."""


def _settled_in(model: nn.Module, own: nn.Module, script: Script) -> Graph:
    graph, changes = trace_script(own, script)
    if not changes:
        return graph
    after = structural_copy(own)
    settle(after, script)
    _changed.setdefault(model, {})[script.mode] = after
    return trace_script(after, script)[0]


def on_the_other_side(model: nn.Module, subject: Subject, line: Source) -> Subject:
    """A subject whose branch on data at one line takes the other side.

    Raises:
        TraceError: that side cannot be traced, or raises by itself.
    """
    kept = _other_sides.setdefault(model, {})
    mode = subject.script.mode if subject.script is not None else RunMode.EVALUATION
    if (mode, line) not in kept:
        kept[mode, line] = _traced_on_the_other_side(model, subject, line)
    found = kept[mode, line]
    if isinstance(found, TraceError):
        raise found
    return replace(subject, graph=found[0], script=found[1], evaluation=subject.reference)


def _traced_on_the_other_side(model: nn.Module, subject: Subject, line: Source) -> tuple[Graph, Script] | TraceError:
    with private_copy(model) as own:
        script = subject.script or next(scripts(own, RunMode.EVALUATION))
        script = replace(script, other_side=frozenset({line}))
        try:
            runs = _changed.get(model, {}).get(script.mode, own)
            return trace_script(runs, script)[0], script
        except TraceError as error:
            return error


_after: "WeakKeyDictionary[nn.Module, dict[tuple[RunMode, RunMode], Subject | TraceError]]" = WeakKeyDictionary()


def after_another(model: nn.Module, subject: Subject, first: RunMode) -> Subject:
    """A subject in its mode after one forward in another mode or the same, with what that left in the model.

    Raises:
        TraceError: it cannot be traced so.
    """
    script = subject.script
    with private_copy(model) as own:
        script = replace(script or next(scripts(own, RunMode.EVALUATION)), after=first)
        kept = _after.setdefault(model, {})
        if (script.mode, first) not in kept:
            runs = _changed.get(model, {}).get(script.mode, own)
            try:
                graph = trace_script(runs, script)[0]
                kept[script.mode, first] = replace(subject, graph=graph, script=script, evaluation=subject.reference)
            except TraceError as error:
                kept[script.mode, first] = error
        found = kept[script.mode, first]
    if isinstance(found, TraceError):
        raise found
    return found


def program_for(model: nn.Module, inputs: Mapping[str, Any]) -> Graph:
    """The single-device program on other inputs (meta tensors, by the names of the forward's arguments).

    Raises:
        TraceError: the forward cannot run on them.
    """
    with private_copy(model) as own:
        return trace(own, inputs)


@dataclass(frozen=True, slots=True)
class _ProgramKey:
    """What a kept program of one rank was asked for."""

    assigned: Assigned
    degree: int
    distributed: bool
    mode: RunMode
    other_side: frozenset[Source]
    after: RunMode | None


_programs: "WeakKeyDictionary[nn.Module, list[tuple[_ProgramKey, Graph]]]" = WeakKeyDictionary()
KEPT = 8
"""Per-rank programs that are kept for each model, two in each mode: inference, degrees and proof ask for the same ones."""


def local_program(
    model: nn.Module,
    assigned: Assigned,
    degree: int,
    inputs: Mapping[str, Any] | None = None,
    *,
    script: Script | None = None,
    distributed: bool = True,
    unfixed: Mapping[Source, int] | None = None,
) -> Graph:
    """One rank's program, from `trace_local` (which says what the arguments are); on the usual inputs it is kept from the last
    times.

    Raises:
        IndivisibleError: a parameter does not divide.
        TraceError: the local program fails by itself.
    """
    if unfixed or inputs is not None:
        with private_copy(model) as own:
            return trace_local(own, assigned, degree, inputs, unfixed=unfixed, distributed=distributed)
    told = script or Script(RunMode.EVALUATION, ())
    asked = _ProgramKey(assigned, degree, distributed, told.mode, told.other_side, told.after)
    kept = _programs.setdefault(model, [])
    for known, program in kept:
        if known == asked:
            return program
    with private_copy(model) as own:
        runs = _changed.get(model, {}).get(told.mode, own)
        made = trace_local(runs, assigned, degree, script=script, distributed=distributed)
    kept[:] = [(asked, made), *kept[: KEPT - 1]]
    return made


def on_meta(loaded: LoadedModel) -> nn.Module:
    """The one meta model of what was loaded: to be read and traced, never changed (`build` gives another).

    Raises:
        LoadError: its constructor raises.
    """
    kept: dict[str, nn.Module] = vars(loaded)
    if "_on_meta" not in kept:
        kept["_on_meta"] = build(loaded)
    return kept["_on_meta"]
