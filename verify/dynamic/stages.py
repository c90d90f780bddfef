"""One pipeline stage: the model's own forward, with all that the stage does not own made absent.

An absent module keeps its object (models read attributes of their layers) but loses its weights, and answers with zeros
in the form that the single-device model's module gave. What a stage receives replaces the hidden states at the entrance
of its first own layer, so that nothing of the model's preamble is applied twice; all else (masks, positions) the stage
makes anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import Cache

from planner.ir.plan import PpEntry, join
from verify.dynamic.compare import whole
from verify.dynamic.exact import OutOfPlace

_REFUSAL = "is a view and is being modified inplace"
_WRITES = ("update", "update_conv_state", "update_recurrent_state")


@dataclass(frozen=True, slots=True)
class Layout:
    """Which modules go where; names as the head model sees them, `hidden` is the layers' hidden-state argument."""

    before: tuple[str, ...]
    layers: str
    depth: int
    after: tuple[str, ...]
    hidden: str

    @property
    def named(self) -> tuple[str, ...]:
        """Every module that some stage does without."""
        return (*self.before, *self._layers(range(self.depth)), *self.after)

    def own(self, stage: int, stages: int) -> range:
        """The layers of one stage: contiguous and even, the longer ranges last."""
        return range(stage * self.depth // stages, (stage + 1) * self.depth // stages)

    def absent(self, stage: int, stages: int) -> tuple[str, ...]:
        """What one stage does without."""
        own = self.own(stage, stages)
        elsewhere = self._layers(number for number in range(self.depth) if number not in own)
        return (
            *(self.before if stage > 0 else ()),
            *elsewhere,
            *(self.after if stage < stages - 1 else ()),
        )

    def layer(self, number: int) -> str:
        """The name of one layer."""
        return f"{self.layers}.{number}"

    def _layers(self, numbers: Sequence[int] | Iterator[int]) -> tuple[str, ...]:
        return tuple(map(self.layer, numbers))


def layout_of(
    model: nn.Module, base: Sequence[PpEntry], head: Sequence[PpEntry], *, base_prefix: str, stages: int
) -> Layout:
    """The layout that a pipeline plan asks for; `ValueError` where it names no such pipeline."""
    found = {join(base_prefix, entry.module): entry for entry in base}
    modules = {name: _module(model, name) for name in found}
    stacks = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    if len(stacks) != 1:
        names = ", ".join(map(repr, stacks)) or "none"
        raise ValueError(f"A pipeline plan must name exactly one ModuleList, the layers; this one names {names}.")
    stack, order = modules[stacks[0]], list(modules)
    assert isinstance(stack, nn.ModuleList)
    if len(stack) < stages:
        raise ValueError(f"{stacks[0]} holds {len(stack)} layers, too few for {stages} pipeline stages.")
    for entry in head:
        _module(model, entry.module)
    at, inputs = order.index(stacks[0]), found[stacks[0]].inputs
    return Layout(
        before=tuple(order[:at]),
        layers=stacks[0],
        depth=len(stack),
        after=(*order[at + 1 :], *(entry.module for entry in head)),
        hidden=inputs[0] if inputs else "hidden_states",
    )


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"The pipeline plan names {name!r}, but {type(model).__name__} has no such module.") from error


@dataclass(frozen=True, slots=True)
class Write:
    """One write into the cache, its tensors on the meta device."""

    method: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module: the form of its output (tensors on the meta device), and what it wrote into the cache."""

    output: object
    writes: tuple[Write, ...] = ()


@dataclass(slots=True)
class Record:
    """The calls of each named module during one forward of the single-device model, in order."""

    calls: dict[str, list[Call]] = field(default_factory=dict)

    def first_output(self, name: str) -> torch.Tensor:
        """The form of a module's first output; `ValueError` where that is no tensor."""
        output = self.calls[name][0].output if name in self.calls else None
        first = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(first, torch.Tensor):
            raise ValueError(
                f"{name} must return its hidden states first, as a tensor; it returns {type(first).__name__}."
            )
        return first


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[Record]:
    """Record the calls of these modules."""
    record = Record()
    with ExitStack() as hooks:
        for name in names:
            for handle in _watch(model.get_submodule(name), record.calls.setdefault(name, [])):
                hooks.callback(handle.remove)
        yield record


def _watch(module: nn.Module, calls: list[Call]) -> tuple[torch.utils.hooks.RemovableHandle, ...]:
    writes: list[Write] = []

    def before(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if (cache := _cache(args, kwargs)) is not None:
            for method in _WRITES:
                if hasattr(cache, method):
                    vars(cache)[method] = _noted(getattr(cache, method), method, writes)

    def after(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        if (cache := _cache(args, kwargs)) is not None:
            for method in _WRITES:
                vars(cache).pop(method, None)
        calls.append(Call(_mapped(output, _form), tuple(writes)))
        writes.clear()

    return (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    )


def _noted(write: Callable[..., object], method: str, writes: list[Write]) -> Callable[..., object]:
    def noted(*args: object, **kwargs: object) -> object:
        forms = {name: _mapped(value, _form) for name, value in kwargs.items()}
        writes.append(Write(method, tuple(_mapped(value, _form) for value in args), forms))
        return write(*args, **kwargs)

    return noted


def _cache(args: Sequence[object], kwargs: Mapping[str, object]) -> Cache | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)


def _form(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def _mapped(value: object, change: Callable[[torch.Tensor], torch.Tensor]) -> object:
    """The same structure with every tensor changed."""
    match value:
        case torch.Tensor():
            return change(value)
        case tuple() | list():
            return type(value)(_mapped(item, change) for item in value)
        case dict():
            return {key: _mapped(item, change) for key, item in value.items()}
        case _:
            return value


class Stage(nn.Module):
    """One stage of a model that is changed in place, its absent weights dropped before.

    `forward(first, **inputs)`: on the first stage `first` is unused, on every other it is the hidden states received. It
    returns the hidden states to send, on the last stage the model's first output. What the stage needs besides is set
    from outside: `record`, the calls of the single-device model to the same question, and `inputs`, more arguments.
    """

    def __init__(self, model: nn.Module, layout: Layout, device: torch.device, *, stage: int, stages: int) -> None:
        super().__init__()
        self.model = model
        self.first, self.last = stage == 0, stage == stages - 1
        self.record = Record()
        self.inputs: Mapping[str, object] = {}
        self.cache: Cache | None = None
        self._received: torch.Tensor | None = None
        self._sent: torch.Tensor | None = None
        self._calls: dict[str, Iterator[Call]] = {}
        self._hidden = layout.hidden
        self.device = device
        own = layout.own(stage, stages)
        self.sends = layout.layer(own[-1])
        self.receives = layout.layer(own[0] - 1) if own[0] else ""
        if not self.first:
            model.get_submodule(layout.layer(own[0])).register_forward_pre_hook(self._inject, with_kwargs=True)
        model.get_submodule(self.sends).register_forward_hook(self._keep)
        for name in layout.absent(stage, stages):
            vars(model.get_submodule(name))["forward"] = self._answer(name)

    def forward(self, first: torch.Tensor, **inputs: object) -> torch.Tensor:
        """Run the model on this stage's inputs; where autograd refuses its `a += b`, with `a = a + b`."""
        self._received = None if self.first else first
        try:
            return self._run(inputs)
        except RuntimeError as error:
            if _REFUSAL not in str(error):
                raise
        with OutOfPlace():
            return self._run(inputs)

    def _run(self, inputs: Mapping[str, object]) -> torch.Tensor:
        self._calls = {name: iter(calls) for name, calls in self.record.calls.items()}
        output = self.model(**self.inputs, **inputs)
        self.cache = output.get("past_key_values")
        if self.last:
            return whole(output[0])
        assert self._sent is not None
        return self._sent.contiguous()

    def _inject(
        self, _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        if self._hidden in kwargs:
            return args, kwargs | {self._hidden: self._received}
        if args and isinstance(args[0], torch.Tensor):
            return (self._received, *args[1:]), kwargs
        raise ValueError(
            f"The pipeline plan gives the layers {self._hidden!r}, but the model does not pass it to them."
        )

    def _keep(self, _: nn.Module, __: tuple[object, ...], output: object) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        assert isinstance(first, torch.Tensor)
        self._sent = first

    def _answer(self, name: str) -> Callable[..., object]:
        def absent(*args: object, **kwargs: object) -> object:
            call, cache = next(self._calls[name]), _cache(args, kwargs)
            for write in call.writes if cache is not None else ():
                getattr(cache, write.method)(
                    *(self._zeros(value) for value in write.args),
                    **{key: self._zeros(value) for key, value in write.kwargs.items()},
                )
            return self._zeros(call.output)

        return absent

    def _zeros(self, value: object) -> object:
        return _mapped(value, lambda form: torch.zeros_like(form, device=self.device))


def drop(model: nn.Module, names: Sequence[str]) -> None:
    """Take the weights of these modules away. A weight that is tied to one of another module stays there."""
    for name in names:
        model.get_submodule(name).to("meta")


def untie(model: nn.Module) -> None:
    """Give every name its own parameter: a style shards one name at a time. Gradients are summed over names later."""
    seen: set[int] = set()
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if id(value) in seen:
                setattr(module, name, nn.Parameter(value.detach().clone()))
            seen.add(id(value))
