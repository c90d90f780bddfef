"""One pipeline stage: the model's own forward, with all that the stage does not own made absent.

An absent module keeps its object (models read attributes of their layers) but loses its weights, and answers with zeros
in the form that the single-device model's module gave. What a stage receives takes its place where the trace says that it
enters a layer, so that nothing of the model's preamble is applied twice; all else (masks, positions) the stage makes anew.
What a stage sends is taken where it would enter a layer that the stage lacks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, starmap
from typing import cast

import torch
from torch import nn
from transformers import Cache, EncoderDecoderCache
from transformers.utils.generic import ModelOutput

from shardproof.planner.ir.dataflow import Cut, Entrance, Live
from shardproof.planner.ir.plan import PpEntry, join
from shardproof.planner.tracing.layer_stack import layer_stack, members, same_member
from shardproof.planner.weights.shards import whole
from shardproof.verify.stages.exact import copied_outputs
from shardproof.verify.stages.stage_boundary import ReceivedTensor, StageBoundary, argument, put, taken

_REFUSAL = "is a view and is being modified inplace"
_WRITES = ("update", "update_conv_state", "update_recurrent_state")


@dataclass(frozen=True, slots=True)
class StageLayout:
    """Which modules go where, names as the head model sees them; `chunks` are the layers of each stage."""

    before: tuple[str, ...]
    layers: str
    depth: int
    after: tuple[str, ...]
    chunks: tuple[range, ...]

    @property
    def named(self) -> tuple[str, ...]:
        """Every module that some stage does without."""
        return (*self.before, *self._layers(range(self.depth)), *self.after)

    def absent(self, stage: int) -> tuple[str, ...]:
        """What one stage does without."""
        elsewhere = self._layers(number for number in range(self.depth) if number not in self.chunks[stage])
        return (
            *(self.before if stage > 0 else ()),
            *elsewhere,
            *(self.after if stage < len(self.chunks) - 1 else ()),
        )

    def cuts(self, stage: int) -> tuple[Cut | None, Cut | None]:
        """The cuts before and after a stage; there is none before the first and after the last."""
        own, last = self.chunks[stage], len(self.chunks) - 1
        start = Cut(self.layers, own.start, self.before) if stage > 0 else None
        return start, Cut(self.layers, own.stop, self.before) if stage < last else None

    def layer(self, number: int) -> str:
        """The name of one layer."""
        return f"{self.layers}.{number}"

    def _layers(self, numbers: Iterable[int]) -> tuple[str, ...]:
        return tuple(map(self.layer, numbers))


def dealt(depth: int, stages: int, *, bounds: Sequence[int] = ()) -> tuple[range, ...]:
    """The layers of each stage: contiguous, from each of `bounds` on, else even with the longer ranges last.

    `ValueError` where a stage would be left without a layer.
    """
    starts = (0, *bounds) if bounds else tuple(stage * depth // stages for stage in range(stages))
    chunks = tuple(starmap(range, pairwise((*starts, depth))))
    if len(chunks) != stages or not all(chunks):
        raise ValueError(
            f"{depth} layers cut before {', '.join(map(str, starts[1:]))} make no {stages} pipeline stages."
        )
    return chunks


def moved(chunks: Sequence[range], cuts: Sequence[int]) -> tuple[range, ...]:
    """The same number of chunks, each begun at the nearest of `cuts` (ascending); as they are where there are too few."""
    depth, starts = chunks[-1].stop, list[int]()
    for number, chunk in enumerate(chunks[1:], 2):
        later = [cut for cut in cuts if cut > (starts[-1] if starts else 0)]
        free = later[: len(later) - (len(chunks) - number)]
        if not free:
            return tuple(chunks)
        starts.append(min(free, key=lambda cut: abs(cut - chunk.start)))
    return dealt(depth, len(chunks), bounds=starts)


def layout_of(
    model: nn.Module,
    base: Sequence[PpEntry],
    head: Sequence[PpEntry],
    *,
    base_prefix: str,
    stages: int,
) -> StageLayout:
    """The layout that a pipeline plan asks for; `ValueError` where it names no such pipeline."""
    modules = {name: _module(model, name) for name in (join(base_prefix, entry.module) for entry in base)}
    stack = layer_stack(model, modules)
    if stack is None:
        raise ValueError("A pipeline plan must name the ModuleList of the layers; this one names none.")
    for entry in head:
        _module(model, entry.module)
    order, layers = list(modules), modules[stack]
    assert isinstance(layers, nn.ModuleList)
    if len(layers) < stages:
        raise ValueError(f"{stack} holds {len(layers)} layers, too few for {stages} pipeline stages.")
    if (twice := same_member(model, stack)) is not None:
        raise ValueError(
            f"{stack}.{twice[0]} and {stack}.{twice[1]} are one module, which cannot be on one stage alone."
        )
    at = order.index(stack)
    after = (*order[at + 1 :], *(entry.module for entry in head))
    return StageLayout(
        before=tuple(name for path in order[:at] for name in members(model, path)),
        layers=stack,
        depth=len(layers),
        after=tuple(name for path in after for name in members(model, path)),
        chunks=dealt(len(layers), stages),
    )


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"The pipeline plan names {name!r}, but {type(model).__name__} has no such module.") from error


@dataclass(frozen=True, slots=True)
class CacheWrite:
    """One write into the cache, its tensors on the meta device; `part` is the cache in a cache of several, from 0."""

    part: int
    method: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call of a module: the forms of what it was given and gave (tensors on the meta device), and its cache writes."""

    output: object
    writes: tuple[CacheWrite, ...] = ()
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """The calls of each named module during one forward of the single-device model, in order."""

    calls: dict[str, list[RecordedCall]] = field(default_factory=dict)

    def entering(self, layer: str, module: nn.Module, entrance: Entrance) -> torch.Tensor:
        """The form of what entered a layer in its first call, `requires_grad` as it was."""
        call = self.calls[layer][0]
        return taken(module, call.args, call.kwargs, entrance)


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[Record]:
    """Record the calls of these modules."""
    record = Record()
    with ExitStack() as hooks:
        for name in names:
            for handle in _watch(model.get_submodule(name), record.calls.setdefault(name, [])):
                hooks.callback(handle.remove)
        yield record


def _watch(module: nn.Module, calls: list[RecordedCall]) -> tuple[torch.utils.hooks.RemovableHandle, ...]:
    writes: list[CacheWrite] = []
    given: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def before(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        given.append((tuple(map(_given_form, args)), {name: _given_form(value) for name, value in kwargs.items()}))
        for part, cache in enumerate(_caches(args, kwargs)):
            for method in _WRITES:
                if hasattr(cache, method):
                    vars(cache)[method] = _noted(getattr(cache, method), (part, method), writes)

    def after(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        for cache in _caches(args, kwargs):
            for method in _WRITES:
                vars(cache).pop(method, None)
        calls.append(RecordedCall(_mapped(output, _form), tuple(writes), *given.pop()))
        writes.clear()

    return (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    )


def _noted(write: Callable[..., object], where: tuple[int, str], writes: list[CacheWrite]) -> Callable[..., object]:
    def noted(*args: object, **kwargs: object) -> object:
        forms = {name: _mapped(value, _form) for name, value in kwargs.items()}
        writes.append(CacheWrite(*where, tuple(_mapped(value, _form) for value in args), forms))
        return write(*args, **kwargs)

    return noted


def _caches(args: Sequence[object], kwargs: Mapping[str, object]) -> list[Cache]:
    """The cache among the arguments of a call; of a decoder with an encoder the two that it is made of."""
    cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
    if isinstance(cache, EncoderDecoderCache):
        return [cache.self_attention_cache, cache.cross_attention_cache]
    return [] if cache is None else [cache]


def _form(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def _given_form(value: object) -> object:
    """The form of an argument; caches are not kept."""
    if isinstance(value, Cache):
        return None
    return _mapped(value, lambda tensor: _form(tensor).requires_grad_(tensor.requires_grad))


def _mapped(value: object, change: Callable[[torch.Tensor], torch.Tensor]) -> object:
    """The same structure with every tensor changed."""
    match value:
        case torch.Tensor():
            return change(value)
        case tuple() | list():
            items, kind = [_mapped(item, change) for item in value], cast("Callable[..., object]", type(value))
            return kind(*items) if hasattr(value, "_fields") else kind(items)
        case ModelOutput():
            return type(value)(**{key: _mapped(item, change) for key, item in value.items()})
        case dict():
            return {key: _mapped(item, change) for key, item in value.items()}
        case _:
            return value


@dataclass(frozen=True, slots=True)
class StagePlace:
    """A stage's place among the others: its number, and what passes the cuts on both of its sides."""

    stage: int
    receives: StageBoundary
    sends: StageBoundary
    kept: frozenset[str] = frozenset()
    """Modules of other stages that this one runs all the same: a fault to be found."""


def absent(layout: StageLayout, place: StagePlace) -> tuple[str, ...]:
    """What a stage does without."""
    return tuple(name for name in layout.absent(place.stage) if name not in place.kept)


def _into(boundary: StageBoundary, layer: int) -> list[tuple[Live, Entrance]]:
    """What enters one layer of what a cut carries."""
    return [(live, entrance) for live in boundary.values for entrance in live.entrances if entrance.layer == layer]


class Stage(nn.Module):
    """One stage of a model that is changed in place, its absent weights dropped before.

    `forward(*received, **inputs)`: on the first stage what it is given is unused, on every other it is what `receives`
    lists. It returns what `sends` lists, on the last stage the model's first output. What the stage needs besides is set
    from outside: `record`, the calls of the single-device model to the same question, and `inputs`, more arguments.
    What it received is `held`, by number; the numbers in `elsewhere` are put in where something else says.
    """

    def __init__(self, model: nn.Module, layout: StageLayout, device: torch.device, place: StagePlace) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self.receives, self.sends = place.receives, place.sends
        self.first, self.last = place.stage == 0, place.stage == len(layout.chunks) - 1
        self.record = Record()
        self.inputs: Mapping[str, object] = {}
        self.cache: Cache | None = None
        self.device = device
        self.held: dict[int, torch.Tensor] = {}
        self.elsewhere: set[int] = set()
        self._sent: dict[int, torch.Tensor] = {}
        self._entered: set[int] = set()
        self._calls: dict[str, Iterator[RecordedCall]] = {}
        self.own = layout.chunks[place.stage]
        for number in range(self.own.start, layout.depth):
            self._watch_entrances(number)
        self.absent = absent(layout, place)
        for name in self.absent:
            vars(model.get_submodule(name))["forward"] = self._answer(name)

    def owned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that this stage has."""
        missing = tuple(f"{name}." for name in self.absent)
        return ((name, value) for name, value in self.model.named_parameters() if not name.startswith(missing))

    def forward(self, *received: torch.Tensor, **inputs: object) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the model on this stage's inputs; where autograd refuses its `a += b`, again on copies of the outputs."""
        self.held = {} if self.first else dict(zip(self.receives.numbers, received, strict=True))
        try:
            return self._run(inputs)
        except RuntimeError as error:
            if _REFUSAL not in str(error):
                raise
        with copied_outputs(self.model):
            return self._run(inputs)

    def forms(self, boundary: StageBoundary) -> tuple[torch.Tensor, ...]:
        """The forms of what a cut carries, as the single-device model's layers were given it."""
        entrances = [live.entrances[0] for live in boundary.values]
        layers = [self.layout.layer(entrance.layer) for entrance in entrances]
        return tuple(
            self.record.entering(layer, self.model.get_submodule(layer), entrance)
            for layer, entrance in zip(layers, entrances, strict=True)
        )

    def _run(self, inputs: Mapping[str, object]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        self._calls = {name: iter(calls) for name, calls in self.record.calls.items()}
        self._entered, self._sent = set(), {}
        output = self.model(**self.inputs, **inputs)
        self.cache = output.get("past_key_values")
        if self.last:
            return whole(output[0])
        return tuple(self._sent[number].contiguous() for number in self.sends.numbers)

    def _watch_entrances(self, number: int) -> None:
        """Put what was received where it enters a layer, and keep what is to be sent where it would enter one."""
        module = self.model.get_submodule(self.layout.layer(number))
        receive = _into(self.receives, number) if number in self.own else []
        send = [] if number in self.own else _into(self.sends, number)

        def enter(
            _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
        ) -> tuple[tuple[object, ...], dict[str, object]]:
            if number not in self._entered:
                self._entered.add(number)
                for live, entrance in send:
                    tensor = self.held.get(live.value)
                    self._sent.setdefault(
                        live.value, taken(module, args, kwargs, entrance) if tensor is None else tensor
                    )
                for live, entrance in (pair for pair in receive if pair[0].value not in self.elsewhere):
                    call = self.record.calls[self.layout.layer(number)][0]
                    form = argument(module, call.args, call.kwargs, entrance.argument)
                    args, kwargs = put(module, args, kwargs, entrance, ReceivedTensor(self.held[live.value], form))
            return args, kwargs

        module.register_forward_pre_hook(enter, with_kwargs=True)

    def _answer(self, name: str) -> Callable[..., object]:
        def answer(*args: object, **kwargs: object) -> object:
            call, caches = next(self._calls[name]), _caches(args, kwargs)
            for write in call.writes if caches else ():
                getattr(caches[write.part], write.method)(
                    *(self._zeros(value) for value in write.args),
                    **{key: self._zeros(value) for key, value in write.kwargs.items()},
                )
            return self._zeros(call.output)

        return answer

    def _zeros(self, value: object) -> object:
        """Made from a shape and not from a form: in a trace a form would be a constant of the program."""
        return _mapped(value, lambda form: torch.zeros(form.shape, dtype=form.dtype, device=self.device))
