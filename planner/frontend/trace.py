"""Record one forward of a model on the meta device as a `Graph`: full real size, no memory, no weights.

Two torch modes do it. A function mode keeps the composite ops that carry meaning (`linear`, `matmul`, attention, `einsum`,
norms) whole, and answers questions about data that meta tensors do not hold. A dispatch mode records everything else as
aten ops, in-place ones as if they returned a new value. Repeated layers run once per kind: a later layer of the same kind,
called alike, becomes a single op `repeat`.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.hooks import RemovableHandle

from planner.frontend.modules import layer_kinds, module_table
from planner.frontend.source import SourceFinder
from planner.ir.findings import Source
from planner.ir.graph import Arg, Graph, ModuleCall, Op, Ref, Value

WHOLE: Mapping[object, str] = {
    F.linear: "linear",
    torch.matmul: "matmul",
    Tensor.matmul: "matmul",
    Tensor.__matmul__: "matmul",
    Tensor.__rmatmul__: "rmatmul",
    torch.einsum: "einsum",
    F.scaled_dot_product_attention: "attention",
    F.layer_norm: "layer_norm",
    torch.layer_norm: "layer_norm",
    F.rms_norm: "rms_norm",
    F.group_norm: "group_norm",
    F.one_hot: "one_hot",
    F.embedding: "embedding",
}
"""Torch functions recorded as one op."""

SAME = {"aten.clone", "aten.detach", "aten.alias", "aten.contiguous", "aten.lift_fresh", "aten.lift_fresh_copy"}
"""Ops whose result is their input: they leave no trace, for whether they run depends on strides."""

ALSO = {"aten._unsafe_view": "aten.view", "aten.reshape": "aten.view", "aten._reshape_alias": "aten.view"}
"""One name for ops among which torch chooses by strides."""

FOUND = 3
"""How many elements a data-dependent op (`nonzero`, a boolean mask) is taken to find."""


class TraceError(RuntimeError):
    """A forward that could not be run on meta tensors; carries where it stopped, what ran before, and the op that failed."""

    def __init__(
        self, message: str, module: str, source: Source | None, *, before: Graph | None = None, failed: Op | None = None
    ) -> None:
        super().__init__(message)
        self.module = module
        self.source = source
        self.before = before
        self.failed = failed


@dataclass
class Recorder:
    """Mutable state of one recording: numbered values, ops, the module stack."""

    paths: Mapping[int, str]
    sources: SourceFinder
    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    stack: list[nn.Module] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    number_of: dict[int, int] = field(default_factory=dict)
    view_of: dict[int, Tensor] = field(default_factory=dict)
    keep: list[Tensor] = field(default_factory=list)
    paused: int = 0
    failed: Op | None = None

    def number(self, tensor: Tensor, name: str | None = None) -> int:
        """The value number of a tensor; one that was never seen is a constant made outside of the forward."""
        known = self.number_of.get(id(tensor))
        return self.bind(tensor, name or f"constant.{len(self.values)}") if known is None else known

    def bind(self, tensor: Tensor, name: str | None = None) -> int:
        """Give a tensor a new value number."""
        self.keep.append(tensor)
        self.values.append(Value(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), name))
        self.number_of[id(tensor)] = len(self.values) - 1
        return len(self.values) - 1

    def alias(self, tensor: Tensor, other: Tensor) -> None:
        """Two tensors that hold the same value."""
        self.keep.append(tensor)
        self.number_of[id(tensor)] = self.number(other)

    def record(self, target: str, args: Sequence[object], kwargs: Mapping[str, object], result: object) -> None:
        """Append one op."""
        op = self._op(target, args, kwargs)
        made = tuple(self.bind(tensor) for tensor in tree_flatten(result)[0] if isinstance(tensor, Tensor))
        self.ops.append(replace(op, outputs=made))

    def _op(self, target: str, args: Sequence[object], kwargs: Mapping[str, object]) -> Op:
        packed = tuple(self._arg(arg) for arg in args)
        named = tuple((key, self._arg(value)) for key, value in kwargs.items())
        return Op(target, packed, named, (), self.module, self.sources.here(self.stack[-1] if self.stack else None))

    @contextmanager
    def attempt(self, target: str, args: Sequence[object], kwargs: Mapping[str, object]) -> Iterator[None]:
        """Run one op's own code unrecorded; where it fails, remember which op it was."""
        try:
            with self.silent():
                yield
        except Exception:
            self.failed = self._op(target, args, kwargs)
            raise

    @property
    def module(self) -> str:
        """The path of the module whose forward is running."""
        return self.paths.get(id(self.stack[-1]), "") if self.stack else ""

    def note(self, text: str) -> None:
        """Remember an assumption, once per source line."""
        where = self.sources.here(self.stack[-1] if self.stack else None)
        self.notes[f"{where or self.module}: {text}"] = None

    def _arg(self, value: object) -> Arg:
        match value:
            case Tensor():
                return Ref(self.number(value))
            case bool() | int() | float() | str() | None:
                return value
            case tuple() | list():
                return tuple(self._arg(item) for item in value)
            case slice():
                return ("slice", self._arg(value.start), self._arg(value.stop), self._arg(value.step))
            case _:
                return str(value)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Run ops without recording them."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1


class _Functions(TorchFunctionMode):
    """Keeps meaningful composites whole and answers for data that is not there."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if recorder.paused:
            return func(*args, **kwargs)
        if func in ANSWERS and args and isinstance(args[0], Tensor) and args[0].is_meta:
            recorder.note("the branch taken does not depend on data here; one representative path was traced")
            return ANSWERS[func](args[0])
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Tensor) and args[0].is_meta:
            args = (args[0], tree_map_only(Tensor, _known_index, args[1]), *args[2:])
        target = WHOLE.get(func)
        if target is None:
            return func(*args, **kwargs)
        with recorder.silent():
            args, kwargs = _to_meta(args, kwargs)
        with recorder.attempt(target, args, kwargs):
            result = SHAPED.get(target, func)(*args, **kwargs)
        if target == "rmatmul":
            target, args = "matmul", (args[1], args[0])
        if target == "embedding":
            args, kwargs = (kwargs.get("weight", args[-1] if len(args) == 1 else args[1]), kwargs.get("input", args[0])), {}
        if target == "einsum" and len(args) == 2 and isinstance(args[1], list | tuple):
            args = (args[0], *args[1])
        recorder.record(target, args, kwargs, result)
        return result


class _Dispatch(TorchDispatchMode):
    """Records aten ops; in-place ones rebind the tensor, and the tensor that it is a view of, to new values."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if recorder.paused:
            return func(*args, **kwargs)
        target = f"{func.namespace}.{func._schema.name.rpartition('::')[2]}"
        target = ALSO.get(target, target)
        args, kwargs = _to_meta(args, kwargs)
        with recorder.attempt(target, args, kwargs):
            result = UNSEEN[target](*args, **kwargs) if _unseen(target, args) else func(*args, **kwargs)
        if target == "aten._to_copy" and isinstance(result, Tensor) and result.dtype == args[0].dtype:
            target = "aten.clone"
        if target in SAME and isinstance(result, Tensor):
            recorder.alias(result, args[0])
            return result
        written = [
            value
            for value, slot in zip(args, func._schema.arguments, strict=False)
            if slot.alias_info is not None and slot.alias_info.is_write and isinstance(value, Tensor)
        ]
        recorder.record(target, args, kwargs, result)
        if written:
            self._mutate(written[0], result)
        elif any(out.alias_info is not None for out in func._schema.returns):
            for view in tree_flatten(result)[0]:
                recorder.view_of[id(view)] = args[0]
        return result

    def _mutate(self, tensor: Tensor, result: object) -> None:
        recorder = self.recorder
        if not (isinstance(result, Tensor) and result is tensor):
            recorder.bind(tensor)
        base = recorder.view_of.get(id(tensor))
        if base is not None:
            # NB: other live views of the base keep their old value; modeling code does not read them again.
            recorder.record("view_write", (base, tensor), {}, base)
            self._mutate_base(base)

    def _mutate_base(self, tensor: Tensor) -> None:
        above = self.recorder.view_of.get(id(tensor))
        if above is not None:
            self.recorder.record("view_write", (above, tensor), {}, above)
            self._mutate_base(above)


def _known_index(index: Tensor) -> Tensor | int:
    """A lone number on the meta device, as an index, would be asked for its value: take the first element."""
    return 0 if index.is_meta and index.dim() == 0 and index.dtype != torch.bool else index


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        raise ValueError("one_hot without num_classes depends on data")
    return tensor.new_empty((*tensor.shape, num_classes), dtype=torch.long)


def _embedding(input: Tensor, weight: Tensor, *_: object, **__: object) -> Tensor:
    """By shapes alone: a rank's part of a table has fewer rows than its padding index says."""
    return weight.new_empty((*input.shape, *weight.shape[1:]))


SHAPED: Mapping[str, Callable[..., Any]] = {"one_hot": _one_hot, "embedding": _embedding}
"""Whole ops of which only the result's shape is asked."""


def _to_meta(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Where meta and real tensors meet, all become meta; nothing moves off the meta device."""
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    if not any(tensor.is_meta for tensor in tensors):
        return args, kwargs
    if not all(tensor.is_meta for tensor in tensors):
        args, kwargs = tree_map_only(Tensor, lambda t: t if t.is_meta else t.to("meta"), (args, kwargs))
    if isinstance(kwargs.get("device"), torch.device):
        kwargs = {**kwargs, "device": torch.device("meta")}
    return args, kwargs


def _nonzero(tensor: Tensor, *_: object) -> Tensor:
    return tensor.new_empty((min(FOUND, max(tensor.numel(), 1)), tensor.dim()), dtype=torch.long)


def _masked_index(tensor: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    given: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            given += [index.new_empty((FOUND,), dtype=torch.long)] * index.dim()
        else:
            given.append(index)
    found: Tensor = torch.ops.aten.index.Tensor(tensor, given)
    return found


def _masked_select(tensor: Tensor, *_: object) -> Tensor:
    return tensor.new_empty((FOUND,))


UNSEEN: Mapping[str, Callable[..., Any]] = {
    "aten.nonzero": _nonzero,
    "aten.index": _masked_index,
    "aten.masked_select": _masked_select,
}
"""What data-dependent aten ops return on meta tensors."""


def _unseen(target: str, args: tuple[Any, ...]) -> bool:
    if target not in UNSEEN or not args[0].is_meta:
        return False
    return target != "aten.index" or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _zero(tensor: Tensor) -> Any:
    return False if tensor.dtype == torch.bool else 0.0 if tensor.is_floating_point() else 0


def _zeros(tensor: Tensor) -> Any:
    value = _zero(tensor)
    for size in reversed(tensor.shape):
        value = [value] * size
    return value


ANSWERS: Mapping[object, Callable[[Tensor], Any]] = {
    Tensor.item: _zero,
    Tensor.__bool__: lambda tensor: False,
    Tensor.__int__: lambda tensor: 0,
    Tensor.__index__: lambda tensor: 0,
    Tensor.__float__: lambda tensor: 0.0,
    Tensor.tolist: _zeros,
    Tensor.cpu: lambda tensor: tensor,
    Tensor.numpy: lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype).numpy(),
}
"""What is answered when modeling code asks a meta tensor for its data."""


def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """The inputs of a trace: token ids, batch 3, sequence 17 (sizes that no model's own dims are likely to have)."""
    name = getattr(model, "main_input_name", "input_ids")
    if name != "input_ids":
        raise TraceError(f"{type(model).__name__} takes {name!r}, and only token models are traced", "", None)
    return {"input_ids": torch.empty((3, 17), dtype=torch.long, device="meta")}


def trace(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> Graph:
    """Record one forward of a meta-device model.

    Args:
        model: every parameter on the meta device, in eval mode.
        inputs: keyword arguments of the forward, tensors on meta; by default `example_inputs`.

    Raises:
        TraceError: the forward cannot run on meta tensors; names the module and source line where it stopped.
    """
    return Tracing(model).run(inputs if inputs is not None else example_inputs(model))


class Tracing:
    """One recording of one model; `recorder` is open to hooks that want to add ops of their own."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
        self.recorder = Recorder(self.paths, SourceFinder(model))
        self.kinds = layer_kinds(model)
        self.seen: dict[object, str] = {}
        self.outputs_of: dict[str, Any] = {}
        self.repeats: dict[str, str] = {}
        self.calls: list[ModuleCall | None] = []
        self.open: list[tuple[str, int, tuple[tuple[str, int], ...]]] = []

    def run(self, inputs: Mapping[str, Any]) -> Graph:
        """Run the forward and return its graph."""
        recorder = self.recorder
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            recorder.number(tensor, name)
        given = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        numbered = tuple((name, recorder.bind(tensor)) for name, tensor in given.items())
        try:
            output = self._forward(inputs)
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
            calls=tuple(call for call in self.calls if call is not None),
        )

    def _stopped(self, error: Exception, inputs: tuple[tuple[str, int], ...]) -> TraceError:
        recorder = self.recorder
        return TraceError(
            f"{type(error).__name__}: {error}",
            self._running_at(error),
            recorder.sources.of_traceback(error),
            before=self._graph(inputs, ()),
            failed=recorder.failed,
        )

    def _forward(self, inputs: Mapping[str, Any]) -> object:
        recorder = self.recorder
        handles = [handle for module in self.model.modules() for handle in self._watch(module)]
        restore = [self._run_once_per_kind(module) for module in self.model.modules() if id(module) in self.kinds]
        try:
            with torch.no_grad(), _plain_experts(self.model), _Functions(recorder), _Dispatch(recorder):
                return self.model(**_without_cache(self.model), **inputs)
        finally:
            for handle in handles:
                handle.remove()
            for undo in restore:
                undo()

    def _running_at(self, error: BaseException) -> str:
        """The path of the innermost module whose method an error came through."""
        found, entry = "", error.__traceback__
        while entry is not None:
            module = entry.tb_frame.f_locals.get("self")
            found = self.paths.get(id(module), found) if isinstance(module, nn.Module) else found
            entry = entry.tb_next
        return found

    def _watch(self, module: nn.Module) -> Iterator[RemovableHandle]:
        """Keep the stack of running modules, and note what each call was given and gave."""
        path, recorder = self.paths[id(module)], self.recorder

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            recorder.stack.append(module)
            self.open.append((path, len(self.calls), self._arguments(module, args, kwargs)))
            self.calls.append(None)

        def leave(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            recorder.stack.pop()
            name, position, arguments = self.open.pop()
            made = tuple(recorder.number(t) for t in tree_flatten(output)[0] if isinstance(t, Tensor))
            self.calls[position] = ModuleCall(name, arguments, made)

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave, always_call=True)

    def _arguments(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[str, int], ...]:
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

        def forward(*args: Any, **kwargs: Any) -> Any:
            key = (self.kinds[id(layer)], *_call_signature(args, kwargs))
            first = self.seen.setdefault(key, path)
            if first == path or first not in self.outputs_of:
                self.outputs_of[path] = output = original(*args, **kwargs)
                return output
            self.repeats[path] = first
            tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
            with recorder.silent():
                output = tree_map_only(Tensor, torch.empty_like, self.outputs_of[first])
            recorder.record("repeat", tensors, {}, output)
            return output

        held = vars(layer).get("forward")

        def undo() -> None:
            del layer.forward
            if held is not None:
                layer.forward = held  # type: ignore[method-assign]

        layer.forward = forward  # type: ignore[method-assign]
        return undo


@contextmanager
def _plain_experts(model: nn.Module) -> Iterator[None]:
    """Experts in the modeling file's own words: fused expert kernels hide the computation, and want real data types."""
    configs = {id(config): config for config in (getattr(m, "config", None) for m in model.modules()) if config is not None}
    held = [(config, config._experts_implementation) for config in configs.values() if hasattr(config, "_experts_implementation")]
    for config, _ in held:
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        for config, implementation in held:
            config._experts_implementation = implementation


def _without_cache(model: nn.Module) -> dict[str, bool]:
    """Ask for no cache, where the forward knows of one."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def _call_signature(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[object, ...]:
    leaves, spec = tree_flatten((args, dict(kwargs)))
    return (str(spec), *(tuple(leaf.shape) if isinstance(leaf, Tensor) else _plain(leaf) for leaf in leaves))


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__


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
