"""Record one forward of a model on the meta device as a `Graph`: full real size, no memory, no weights.

Repeated layers run once per kind: a later layer of the same kind, called alike, becomes a single op `repeat`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from shardproof.planner.inputs.accepted import NoInputsError, plain_form, search
from shardproof.planner.inputs.example import (
    TRACED,
    caching,
    example_inputs,
    guesses_calls,
    known_call,
    take,
    take_call,
    taken,
)
from shardproof.planner.inputs.run_modes import NoCacheError, RunMode, Script
from shardproof.planner.ir.errors import ShardproofError
from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.graph import Graph, ModuleCall, Op
from shardproof.planner.loading.any_module import ModuleConfig
from shardproof.planner.loading.modules.own_plan import unlike_lists
from shardproof.planner.loading.source_lines import SourceFinder
from shardproof.planner.loading.version_breaks import version_advice
from shardproof.planner.tracing.layer_kinds import Attributes, LayerNumber, SharedState, layer_kinds, numbered
from shardproof.planner.tracing.modes import Dispatch, Functions
from shardproof.planner.tracing.module_tree import forget_results, kept_tensors, module_table
from shardproof.planner.tracing.own_backward import apply_function
from shardproof.planner.tracing.placeholders import placing_search_results, search_first_only
from shardproof.planner.tracing.recorder import Recorder
from shardproof.planner.tracing.session import (
    TRACING,
    ModuleState,
    forget,
    recording,
    remembered,
    structural_copy,
    without_garbage_collection,
)


class TraceError(ShardproofError, RuntimeError):
    """A forward that could not be run on meta tensors; carries where it stopped, what ran before, and the op that failed."""

    def __init__(
        self, message: str, module: str, source: Source | None, *, before: Graph | None = None, failed: Op | None = None
    ) -> None:
        super().__init__(message)
        self.module = module
        self.source = source
        self.before = before
        self.failed = failed


def trace(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> Graph:
    """Record one forward of a meta-device model.

    Args:
        model: every parameter on the meta device, in eval mode.
        inputs: keyword arguments of the forward, tensors on meta; by default the fullest of `planner.inputs.example` that the
            model takes.

    Raises:
        TraceError: the forward cannot run on meta tensors; names the module and source line where it stopped.
    """
    if inputs is None and taken(model) is None and guesses_calls(model):
        form = known_call(model, TRACED) or plain_form(structural_copy(model), TRACED)
        if form is not None:
            take_call(model, form, TRACED)
    if inputs is not None or taken(model) is not None:
        return _settled(model, inputs if inputs is not None else example_inputs(model))
    try:
        accepted, graph = search(
            model, lambda given: _settled(model, given), sizes=TRACED, failed=TraceError, reached=_ops_before
        )
    except NoInputsError as error:
        raise TraceError(str(error), "", None) from None
    take(model, accepted.form)
    refused = accepted.refused
    return replace(graph, notes=(*graph.notes, _left_out(refused))) if isinstance(refused, TraceError) else graph


def _ops_before(error: Exception) -> int:
    """How far a forward came: the ops that ran before it raised."""
    return len(error.before.ops) if isinstance(error, TraceError) and error.before is not None else 0


def trace_script(model: nn.Module, script: Script) -> tuple[Graph, bool]:
    """Record the forwards of one script in one graph, and say whether they exchange modules or write to parameters.

    Raises:
        TraceError: a forward cannot run on meta tensors.
    """
    tracing, graph = _run_script(model, script)
    return graph, tracing.rebuilds


def _run_script(
    model: nn.Module, script: Script, *, hooked: bool = False, every: bool = False
) -> tuple["Tracing", Graph]:
    while True:  # each other way is tried once
        tracing = Tracing(model, hooked=hooked, every=every)
        try:
            return tracing, tracing.run_script(script)
        except TraceError as error:
            if not _finds_less(model, error) and not _reads_what_layers_left(tracing, script, error):
                raise


def settle(model: nn.Module, script: Script) -> None:
    """Let a script change the model: some rescale their weights the first time in a mode."""
    Tracing(model, keep=True).run_script(script)
    forget(model)


def _finds_less(model: nn.Module, failed: TraceError) -> bool:
    """Whether what failed may run where its search in data finds the first place only, and was not tried so."""
    return isinstance(failed.__cause__, IndexError) and search_first_only(model)


_every: "WeakKeyDictionary[nn.Module, set[RunMode]]" = WeakKeyDictionary()
"""Of each model the modes in which a trace runs every layer."""


def _reads_what_layers_left(tracing: "Tracing", script: Script, failed: TraceError) -> bool:
    """Whether what failed may run where every layer runs, and was not tried so: a layer for which another stood left nothing in
    its attributes (an auxiliary loss) or its cache, which what runs after it may read.
    """
    if not tracing.repeats or isinstance(failed.__cause__, NoCacheError):
        return False
    known = _every.setdefault(tracing.model, set())
    again = script.mode not in known
    known.add(script.mode)
    return again


def _left_out(failed: TraceError) -> str:
    """What was asked of the model first, and why it was not traced so."""
    where = f" ({failed.source})" if failed.source is not None else ""
    return f"traced on fewer inputs, for with all that it takes it fails in {failed.module or 'the model'}{where}: {failed}"


def _settled(model: nn.Module, inputs: Mapping[str, Any]) -> Graph:
    return trace_settled(model, _forward_of(model, inputs))


def _forward_of(model: nn.Module, inputs: Mapping[str, Any]) -> Script:
    return Script(RunMode.EVALUATION, (caching(model, False) | dict(inputs),))


def trace_settled(model: nn.Module, script: Script, *, hooked: bool = False, every: bool = False) -> Graph:
    """Record a script of a model that no longer changes itself: some rescale their weights, or exchange modules, the first time.

    Args:
        model: as in `trace`; left as its first run makes it.
        script: what is run.
        hooked: what a module is noted to be given is what its own hooks made of that.
        every: layers run also where they repeat another.

    Raises:
        TraceError: as in `trace`.
    """
    tracing, graph = _run_script(model, script, hooked=hooked, every=every)
    if not tracing.rebuilds:
        return graph
    settle(model, script)
    again = _run_script(model, script, hooked=hooked, every=every)[1]
    note = f"{type(model).__name__}'s first forward changes the model itself; it was traced as it is afterwards"
    return replace(again, notes=(*again.notes, note))


class Tracing:
    """One recording of one model; `recorder` is open to hooks that want to add ops of their own.

    The model is given back as it was, unless it is to `keep` what its forward made of it. `rebuilds` says afterwards whether
    that exchanged modules or wrote to parameters.
    """

    def __init__(self, model: nn.Module, *, keep: bool = False, hooked: bool = False, every: bool = False) -> None:
        self.model, self.keep, self.hooked, self.rebuilds = model, keep, hooked, False
        modules = remembered(model, "modules", lambda: list(model.named_modules(remove_duplicate=False)))
        self.names: dict[int, list[str]] = {}
        for path, module in modules:
            self.names.setdefault(id(module), []).append(path)
        self.paths = {module: paths[0] for module, paths in self.names.items()}
        self.modules = list({id(module): module for _, module in modules}.values())
        self.recorder = Recorder(SourceFinder(model))
        self.kinds = remembered(model, "layer kinds", lambda: layer_kinds(model))
        self.state = remembered(model, "shared state", self._shared_state)
        self.kinds, self.shared = ({}, {}) if every else (self.kinds, self.state)
        self.apart: set[object] = set()
        self.seen: dict[object, str] = {}
        self.gave: dict[str, _Gave] = {}
        self.repeats: dict[str, str] = {}
        self.calls: list[ModuleCall | None] = []
        self.left: dict[str, list[Tensor]] = {}

    def _kept(self) -> list[tuple[str, Tensor]]:
        return remembered(self.model, "kept tensors", lambda: kept_tensors(self.model))

    def _shared_state(self) -> dict[int, SharedState]:
        """By stack of layers, what they can leave something in for each other."""
        layers: dict[int, list[nn.Module]] = {}
        for module in self.model.modules():
            if (kind := self.kinds.get(id(module))) is not None:
                layers.setdefault(kind.stack, []).append(module)
        return {stack: SharedState.of(members) for stack, members in layers.items()}

    def run(self, inputs: Mapping[str, Any]) -> Graph:
        """Run one forward, as in evaluation, and return its graph."""
        return self.run_script(_forward_of(self.model, inputs))

    def run_script(self, script: Script) -> Graph:
        """Run the forwards of a script and return their one graph."""
        if script.mode in _every.get(self.model, ()):
            self.kinds, self.shared = {}, {}
        with TRACING, without_garbage_collection():
            return self._run(script)

    def _run(self, script: Script) -> Graph:
        recorder = self.recorder
        recorder.gradients.enabled = script.mode is not RunMode.DECODING
        recorder.other_side = script.other_side
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers(), *self._kept()]:
            number = recorder.number(tensor, name)
            if tensor.requires_grad:
                recorder.followed.add(number)
        numbered = tuple((name, recorder.bind(tensor)) for name, tensor in script.tensors.items())
        recorder.followed.update(number for name, number in numbered if script.tensors[name].requires_grad)
        try:
            with placing_search_results(self.model):
                output = self._forward(script)
        except Exception as error:
            raise self._stopped(error, numbered) from error
        return self._graph(numbered, tuple((name, recorder.number(tensor)) for name, tensor in named_tensors(output)))

    def _graph(self, inputs: tuple[tuple[str, int], ...], outputs: tuple[tuple[str, int], ...]) -> Graph:
        recorder = self.recorder
        return Graph(
            modules=module_table(self.model, recorder.number_of, self.repeats),
            values=tuple(recorder.values),
            ops=tuple(recorder.ops),
            inputs=inputs,
            outputs=outputs,
            notes=tuple(recorder.notes),
            written=tuple(recorder.written),
            branches=tuple(recorder.branches),
            calls=tuple(call for call in self.calls if call is not None),
            unlike=unlike_lists(self.model),
            any_module=isinstance(getattr(self.model, "config", None), ModuleConfig),
        )

    def _stopped(self, error: Exception, inputs: tuple[tuple[str, int], ...]) -> TraceError:
        recorder, advice = self.recorder, version_advice(error)
        return TraceError(
            f"{type(error).__name__}: {error}{f'.{advice}' if advice else ''}",
            self._running_at(error),
            recorder.sources.of_traceback(error),
            before=self._graph(inputs, ()),
            failed=recorder.failed,
        )

    def _forward(self, script: Script) -> object:
        recorder, held = self.recorder, [ModuleState.of(module) for module in self.modules]
        put_back = [state.keep() for state in self.state.values()]
        once = (module for module in self.modules if id(module) in self.kinds and "forward" not in vars(module))
        forget_results(self.modules)
        restore = [self._run_once_per_kind(module) for module in list(once)]
        try:
            with (
                torch.no_grad(),
                recording(
                    self.model,
                    script.mode,
                    call=self._call,
                    apply=partial(apply_function, recorder),
                    gradients=recorder.gradients,
                ),
                Functions(recorder),
                Dispatch(recorder),
            ):
                return script.run(self.model)
        finally:
            self.rebuilds = self._rebuilt()
            for undo in restore:
                undo()
            self.left = {self.paths[id(each.module)]: tensors for each in held if (tensors := each.added())}
            for each in () if self.keep else held:
                each.restore()
            for globals_before in put_back:
                globals_before()

    def _rebuilt(self) -> bool:
        numbers = self.recorder.number_of
        written = (
            self.recorder.values[numbers[id(p)]].name is None for p in self.model.parameters() if id(p) in numbers
        )
        return {id(module) for module in self.model.modules()} != set(self.paths) or any(written)

    def _running_at(self, error: BaseException) -> str:
        """The path of the innermost module whose method an error came through."""
        found, entry = "", error.__traceback__
        while entry is not None:
            module = entry.tb_frame.f_locals.get("self")
            found = self.paths.get(id(module), found) if isinstance(module, nn.Module) else found
            entry = entry.tb_next
        return found

    def _call(self, original: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """One call of a module: keep the stack of running modules, and note what the call was given and gave.

        Every call passes here, as in `torch.fx.Tracer`: hooks would have to be put on each of thousands of modules, and those of
        repeated layers never run.
        """
        recorder, path = self.recorder, self._called(module)
        if path is None:
            return original(module, *args, **kwargs)
        recorder.stack.append((path, module))
        position, arguments, output = len(self.calls), self._arguments(module, args, kwargs), None
        first = len(recorder.ops)
        self.calls.append(None)
        noted = self._noted(module) if self.hooked and module._forward_pre_hooks else None
        try:
            output = original(module, *args, **kwargs)
        finally:
            recorder.stack.pop()
            arguments = arguments if noted is None else noted()
            made = tuple(recorder.number(tensor) for tensor in _tensors(output))
            self.calls[position] = ModuleCall(path, arguments, made, (first, len(recorder.ops)))
        return output

    def _called(self, module: nn.Module) -> str | None:
        """The path of a module; of several, the one below the module that is running."""
        names = self.names.get(id(module), [])
        inside = f"{self.recorder.module}."
        return next((name for name in names if name.startswith(inside)), names[0]) if names else None

    def _noted(self, module: nn.Module) -> Callable[[], tuple[tuple[str, int], ...]]:
        """What a call is given after the module's own hooks, to be asked once it is over."""
        last: list[tuple[tuple[str, int], ...]] = [()]

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            last[0] = self._arguments(module, args, kwargs)

        handle = module.register_forward_pre_hook(note, with_kwargs=True)

        def given() -> tuple[tuple[str, int], ...]:
            handle.remove()
            return last[0]

        return given

    def _arguments(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[str, int], ...]:
        try:
            bound = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
        except TypeError:  # a forward that is called with more than its own signature takes
            bound = {str(position): value for position, value in enumerate(args)} | kwargs
        return tuple(
            (name, self.recorder.number(leaf))
            for name, value in bound.items()
            if name != "self"
            for leaf in tree_flatten(value)[0]
            if isinstance(leaf, Tensor)
        )

    def _run_once_per_kind(self, layer: nn.Module) -> Callable[[], None]:
        """Wrap a layer's forward: the first of a kind runs, the next ones called alike become `repeat`."""
        original = layer.forward
        path, recorder = self.paths[id(layer)], self.recorder
        kind, shared = self.kinds[id(layer)], self.shared[self.kinds[id(layer)].stack]

        def forward(*args: Any, **kwargs: Any) -> Any:
            if recorder.running is not layer:  # called by its `forward`, past the call of a module
                recorder.stack.append((path, layer))
                try:
                    return forward(*args, **kwargs)
                finally:
                    recorder.stack.pop()
            tensors = _tensors((args, kwargs))
            given = [recorder.number(tensor) for tensor in tensors]
            same = tuple(given.index(number) for number in given)  # what is read of one value that is given twice?
            state = shared.now()
            told = _call_signature(args, kwargs, kind.position)
            key = (kind.kind, attributes.set_since(), recorder.gradients.enabled, same, state, *told)
            if key in self.apart:
                return original(*args, **kwargs)
            first = self.seen.setdefault(key, path)
            if first == path or first not in self.gave:
                uses: list[str] = []
                with numbered(layer, kind, uses):
                    given_args = [_numbered(value, kind.position, uses) for value in args]
                    given_kwargs = {name: _numbered(value, kind.position, uses) for name, value in kwargs.items()}
                    output = original(*given_args, **given_kwargs)
                attributes.look()  # what a layer keeps of its own run is part of what it stands for
                self.gave[path] = _Gave.of(output, given, recorder)
                if uses or shared.now() != state:
                    self.apart.add(key)
                return output
            self.repeats[path] = first
            with recorder.silent():
                output, made = self.gave[first].again(tensors)
            if made:
                recorder.record("repeat", tensors, {}, made)
            return output

        held = vars(layer).get("forward")

        def undo() -> None:
            del layer.forward
            if held is not None:
                layer.forward = held

        layer.forward = forward
        attributes = Attributes(layer)
        return undo


@dataclass(frozen=True, slots=True)
class _Gave:
    """What the first layer of a kind gave; of each tensor, which of those that it was given it is, where it is one."""

    output: Any
    passed: tuple[int | None, ...]

    @classmethod
    def of(cls, output: object, given: list[int], recorder: Recorder) -> "_Gave":
        numbers = [recorder.number(tensor) for tensor in _tensors(output)]
        return cls(output, tuple(given.index(number) if number in given else None for number in numbers))

    def again(self, given: list[Tensor]) -> tuple[Any, list[Tensor]]:
        """What a later layer of the kind gives, and the tensors of it that are new."""
        made: list[Tensor] = []
        places = iter(self.passed)

        def one(tensor: Tensor) -> Tensor:
            place = next(places)
            if place is not None:
                return given[place]
            made.append(torch.empty_like(tensor))
            return made[-1]

        return tree_map_only(Tensor, one, self.output), made


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _call_signature(args: Sequence[Any], kwargs: Mapping[str, Any], position: int) -> tuple[object, ...]:
    """What makes two calls alike; a layer that is handed its own position in the stack is called like its siblings."""
    leaves, spec = tree_flatten((args, dict(kwargs)))
    return (
        str(spec),
        *((tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else _plain(leaf, position) for leaf in leaves),
    )


def _plain(value: object, position: int) -> object:
    if type(value) is int and value == position:
        return "position"
    plain = isinstance(value, bool | int | float | str | None | torch.dtype | torch.device | Enum)
    return (type(value), value) if plain else (type(value), id(value))


def _numbered(value: Any, position: int, uses: list[str]) -> Any:
    """An argument; a layer's own position is a `LayerNumber`. Containers stay themselves: a layer may leave something there."""
    return LayerNumber(value, uses) if type(value) is int and value == position else value


def named_tensors(output: object) -> list[tuple[str, Tensor]]:
    """The tensors of a model output with their names; a tuple's are numbered."""
    if isinstance(output, Tensor):
        return [("output", output)]
    items: list[tuple[str, object]]
    if isinstance(output, Mapping):
        items = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        items = [(str(position), value) for position, value in enumerate(output)]
    else:
        return []
    found: list[tuple[str, Tensor]] = []
    for name, value in items:
        inner = named_tensors(value)
        found += [(name, tensor) if isinstance(value, Tensor) else (f"{name}.{key}", tensor) for key, tensor in inner]
    return found
