"""One run of a model's forwards on the meta device, recorded as a graph."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from shardproof.planner.inputs.example import caching
from shardproof.planner.inputs.run_modes import RunMode, Script
from shardproof.planner.ir.errors import ShardproofError
from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.graph import Graph, ModuleCall, Op
from shardproof.planner.loading.modules.any_module import ModuleConfig
from shardproof.planner.loading.modules.own_plan import unlike_lists
from shardproof.planner.loading.source_lines import SourceFinder
from shardproof.planner.loading.version_breaks import version_advice
from shardproof.planner.tracing.drawn import DRAWN_PAST_TORCH, generators, generators_kept
from shardproof.planner.tracing.layers.layer_kinds import layer_kinds
from shardproof.planner.tracing.layers.repeats import LayerRepeats, runs_every_layer, tensors_in
from shardproof.planner.tracing.layers.shared_state import SharedState, memos_of, without_memos
from shardproof.planner.tracing.meta_answers.placeholders import placing_search_results
from shardproof.planner.tracing.modes import Dispatch, Functions
from shardproof.planner.tracing.module_tree import forget_results, kept_tensors, module_table
from shardproof.planner.tracing.own_backward import apply_function
from shardproof.planner.tracing.recorder import Recorder
from shardproof.planner.tracing.session import TRACING, ModuleState, recording, remembered, without_garbage_collection


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


def forward_of(model: nn.Module, inputs: Mapping[str, Any]) -> Script:
    """The script of one forward in evaluation, without a cache."""
    return Script(RunMode.EVALUATION, (caching(model, False) | dict(inputs),))


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
        self.memos = remembered(model, "memos", lambda: memos_of(model))
        self.repeats = LayerRepeats(self.recorder, self.paths, {} if every else self.kinds, self.state)
        self.calls: list[ModuleCall | None] = []
        self.left: dict[str, list[Tensor]] = {}
        self.leaves: tuple[str, ...] = ()

    def _kept_tensors(self) -> list[tuple[str, Tensor]]:
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
        return self.run_script(forward_of(self.model, inputs))

    def run_script(self, script: Script) -> Graph:
        """Run the forwards of a script and return their one graph."""
        if runs_every_layer(self.model, script.mode):
            self.repeats.kinds = {}
        with TRACING, without_garbage_collection(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what drops layers at random drops the same ones in every trace
            return self._run(script)

    def _run(self, script: Script) -> Graph:
        recorder = self.recorder
        recorder.gradients.enabled = script.mode is not RunMode.DECODING
        recorder.other_side = script.other_side
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers(), *self._kept_tensors()]:
            number = recorder.number(tensor, name)
            if tensor.requires_grad:
                recorder.followed.add(number)
        numbered = tuple((name, recorder.bind(tensor)) for name, tensor in script.tensors.items())
        recorder.followed.update(number for name, number in numbered if script.tensors[name].requires_grad)
        try:
            with placing_search_results(self.model, script.mode):
                output = self._forward(script)
        except Exception as error:
            raise self._stopped(error, numbered) from error
        return self._graph(numbered, tuple((name, recorder.number(tensor)) for name, tensor in named_tensors(output)))

    def _graph(self, inputs: tuple[tuple[str, int], ...], outputs: tuple[tuple[str, int], ...]) -> Graph:
        recorder = self.recorder
        return Graph(
            modules=module_table(self.model, recorder.number_of, self.repeats.stands_for),
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
            leaves=self.leaves,
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
        drawn = generators()
        put_back = [state.keep() for state in self.state.values()]
        once = [m for m in self.modules if id(m) in self.repeats.kinds and "forward" not in vars(m)]
        forget_results(self.modules)
        restore = [self.repeats.wrap(module) for module in once]
        try:
            with (
                torch.no_grad(),
                generators_kept(),
                without_memos(self.memos),
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
                output = script.run(self.model)
                if generators() != drawn:
                    recorder.notes[DRAWN_PAST_TORCH] = None
                return output
        finally:
            self.rebuilds = self._rebuilt()
            for undo in restore:
                undo()
            self.left = {self.paths[id(each.module)]: tensors for each in held if (tensors := each.added())}
            self.leaves = tuple(self.paths[id(each.module)] for each in held if each.changed())
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
            made = tuple(recorder.number(tensor) for tensor in tensors_in(output))
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
