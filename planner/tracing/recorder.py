"""The state of one recording: numbered values, ops, the stack of running modules."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from torch import Generator, Size, Tensor, nn, uint8
from torch.utils._pytree import tree_flatten

from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.graph import CONSTANT, NO_GRADIENT, UNRECORDED, Arg, Op, Ref, Value
from shardproof.planner.loading.source_lines import SourceFinder
from shardproof.planner.tracing.session import GradientMode

SIZES: Mapping[object, Callable[..., Any]] = {
    Tensor.shape.__get__: lambda size, *_: size,  # type: ignore[attr-defined]  # as torch.overrides has it
    Tensor.size: lambda size, dim=None: size if dim is None else size[dim],
    Tensor.__len__: lambda size: size[0],
    Tensor.numel: lambda size: size.numel(),
}
"""How the size of a distributed tensor, which is that of the whole, is asked for."""


def content_of(tensor: Tensor) -> str:
    """A digest of a tensor's elements, in order; empty where they cannot be read."""
    try:
        return sha256(tensor.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().tobytes()).hexdigest()
    except (RuntimeError, TypeError, NotImplementedError):
        return ""


@dataclass(frozen=True, slots=True)
class ViewOp:
    """An op whose results are views of its first argument. `target` is empty where the op cannot be recorded once more."""

    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    made: tuple[Tensor, ...]


@dataclass
class Recorder:
    """Mutable state of one recording: numbered values, ops, the module stack."""

    sources: SourceFinder
    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    stack: list[tuple[str, nn.Module]] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    number_of: dict[int, int] = field(default_factory=dict)
    view_of: dict[int, Tensor] = field(default_factory=dict)
    views: dict[int, list[ViewOp]] = field(default_factory=dict)
    """The ops that made views of a tensor, by that tensor's id."""
    outdated: dict[int, ViewOp] = field(default_factory=dict)
    """By its id, a view whose memory was written to past it, and the op that makes it of what is there now."""
    keep: list[Tensor] = field(default_factory=list)
    paused: int = 0
    gradients: GradientMode = field(default_factory=GradientMode)
    followed: set[int] = field(default_factory=set)
    """Values that autograd would follow back to a parameter."""
    client_outputs: dict[int, str] = field(default_factory=dict)
    """What a client's hook made of the output of a module: the path of that, by the tensor's id."""
    written: list[tuple[int, str]] = field(default_factory=list)
    branches: dict[Source, None] = field(default_factory=dict)
    """Lines that branch on data."""
    other_side: frozenset[Source] = frozenset()
    """Lines whose branch takes the other side than it would."""
    constants: int = 0
    failed: Op | None = None
    unfixed: Mapping[Source, int] = field(default_factory=dict)
    distributed: set[int] = field(default_factory=set)
    whole: dict[int, tuple[Size, tuple[nn.Module, ...]]] = field(default_factory=dict)
    """Of each sharded parameter, the size of the whole one, and the modules in which it is a local tensor."""

    def number(self, tensor: Tensor, name: str | None = None) -> int:
        """The value number of a tensor; one that was never seen is a constant with its content, or was made unrecorded."""
        if id(tensor) in self.outdated:
            self._take_again(self.outdated[id(tensor)])
        known = self.number_of.get(id(tensor))
        if known is not None:
            return known
        if name is None:
            # Numbered in the order they are met: the same constant has the same name in both programs.
            kind = UNRECORDED if tensor.is_meta else CONSTANT
            name, self.constants = f"{kind}{self.constants}", self.constants + 1
        return self.bind(tensor, name)

    def note_view(self, target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], made: object) -> None:
        """These tensors are views of the first argument."""
        op = ViewOp(target, args, kwargs, tuple(one for one in tree_flatten(made)[0] if isinstance(one, Tensor)))
        self.view_of.update((id(one), args[0]) for one in op.made)
        self.views.setdefault(id(args[0]), []).append(op)

    def outdate_views(self, tensor: Tensor, beside: Tensor) -> None:
        """A tensor was written to, through its view `beside` or (if that is the tensor itself) directly."""
        for op in self.views.get(id(tensor), ()):
            if all(one is not beside for one in op.made):
                for one in op.made:
                    self.outdated[id(one)] = op
                    self.outdate_views(one, one)

    def _take_again(self, op: ViewOp) -> None:
        """The views that an op made, of what their memory holds now."""
        for one in op.made:
            self.outdated.pop(id(one), None)
        if op.target:
            self.record(op.target, op.args, op.kwargs, op.made)
            return
        for one in op.made:
            self.bind(one, f"{UNRECORDED}{self.constants}")
            self.constants += 1

    def bind(self, tensor: Tensor, name: str | None = None) -> int:
        """Give a tensor a new value number."""
        self.outdated.pop(id(tensor), None)
        self.keep.append(tensor)
        content = content_of(tensor) if name is not None and not tensor.is_meta else ""
        self.values.append(Value(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), name, content))
        self.number_of[id(tensor)] = len(self.values) - 1
        return len(self.values) - 1

    def note_write(self, tensor: Tensor) -> None:
        """The op that comes next writes to a tensor in place."""
        base: Tensor | None = tensor
        while base is not None and self.gradients.enabled:
            if (path := self.client_outputs.get(id(base))) is not None:
                self.written.append((len(self.ops), path))
                return
            base = self.view_of.get(id(base))

    def branch(self, taken: bool) -> bool:
        """Which side a branch on data takes here."""
        here = self.sources.here(self.running)
        if here is None:
            return taken
        self.branches[here] = None
        return taken ^ (here in self.other_side)

    def alias(self, tensor: Tensor, other: Tensor) -> None:
        """Two tensors that hold the same value."""
        self.keep.append(tensor)
        self.number_of[id(tensor)] = self.number(other)

    def has_gradient(self, tensor: Tensor) -> bool:
        """Whether autograd would follow this tensor back to a parameter."""
        return self.number(tensor) in self.followed

    @contextmanager
    def without_gradients(self) -> Iterator[None]:
        """As in `torch.no_grad`."""
        self.gradients.enter()
        try:
            yield
        finally:
            self.gradients.leave()

    def record_by_number(
        self,
        target: str,
        values: Sequence[int],
        inputs: Sequence[int],
        gradients: Sequence[int | None] | None,
        made: Sequence[Tensor],
    ) -> None:
        """Append an op whose arguments are known by their numbers; `made` are bound anew."""
        known = None if gradients is None else tuple(None if one is None else Ref(one) for one in gradients)
        args: tuple[Arg, ...] = (tuple(map(Ref, values)), tuple(map(Ref, inputs)), known)
        op = Op(target, args, (), (), self.module, self.sources.here(self.running), not self.gradients.enabled)
        self._append(op, tuple(self.bind(tensor) for tensor in made))

    def _append(self, op: Op, made: tuple[int, ...]) -> None:
        self.ops.append(replace(op, outputs=made))
        if not op.constant and op.target not in NO_GRADIENT and not self.followed.isdisjoint(op.inputs):
            self.followed.update(number for number in made if "float" in self.values[number].dtype)

    def record(self, target: str, args: Sequence[object], kwargs: Mapping[str, object], result: object) -> None:
        """Append one op."""
        op = self._op(target, args, kwargs)
        self._append(op, tuple(self.bind(tensor) for tensor in tree_flatten(result)[0] if isinstance(tensor, Tensor)))

    def _op(self, target: str, args: Sequence[object], kwargs: Mapping[str, object]) -> Op:
        packed = tuple(self._arg(arg) for arg in args)
        named = tuple((key, self._arg(value)) for key, value in kwargs.items())
        source = self.sources.here(self.running)
        return Op(target, packed, named, (), self.module, source, not self.gradients.enabled)

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
        return self.stack[-1][0] if self.stack else ""

    @property
    def running(self) -> nn.Module | None:
        """The module whose forward is running."""
        return self.stack[-1][1] if self.stack else None

    def size_of(self, parameter: Tensor) -> Size | None:
        """What code is told where it asks for the size of a sharded parameter that is no local tensor there; else None."""
        size, local_in = self.whole.get(id(parameter), (None, ()))
        return None if any(running is module for _, running in self.stack for module in local_in) else size

    def note(self, text: str) -> None:
        """Remember an assumption, once per source line."""
        where = self.sources.here(self.running)
        self.notes[f"{where or self.module}: {text}"] = None

    def _arg(self, value: object) -> Arg:
        match value:
            case Tensor():
                return Ref(self.number(value))
            case bool() | int() | float() | str() | None:
                return value
            case tuple() | list():
                return tuple(self._arg(item) for item in value)
            case Generator():  # what it draws follows from its seed
                return f"a generator with seed {value.initial_seed()}"
            case slice():
                return ("slice", self._arg(value.start), self._arg(value.stop), self._arg(value.step))
            case _:
                return str(value)

    @contextmanager
    def inside(self, path: str, module: nn.Module) -> Iterator[None]:
        """The forward of a module runs, also where it is called by itself, past the call of the module."""
        entered = self.running is not module
        if entered:
            self.stack.append((path, module))
        try:
            yield
        finally:
            if entered:
                self.stack.pop()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Run ops without recording them."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1
