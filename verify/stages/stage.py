"""One pipeline stage: the model's own forward, with the modules of other stages made absent.

An absent module keeps its object (models read attributes of their layers) but loses its weights, and returns zeros in the
shapes that the single-device model's module returned. Received activations replace the arguments of the layer that they enter,
as the trace says, so that nothing before the layers is applied twice; masks and positions are computed on every stage. What a
stage sends are the arguments with which its forward calls the first layer that it lacks.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Cache

from shardproof.planner.inputs.run_modes import cache_in
from shardproof.planner.ir.dataflow import Entrance, Live
from shardproof.planner.weights.shards import whole
from shardproof.verify.stages.exact import copied_outputs
from shardproof.verify.stages.record import STATES, Record, RecordedCall, caches_in, mapped
from shardproof.verify.stages.stage_boundary import ReceivedTensor, StageBoundary, argument, put, tensor_at
from shardproof.verify.stages.stage_layout import StageLayout

_REFUSAL = "is a view and is being modified inplace"


@dataclass(frozen=True, slots=True)
class StagePlace:
    """The number of a stage, and the activations at its two stage boundaries."""

    stage: int
    receives: StageBoundary
    sends: StageBoundary
    kept: frozenset[str] = frozenset()
    """Modules of other stages that this stage runs too: an injected fault."""


def absent(layout: StageLayout, place: StagePlace) -> tuple[str, ...]:
    """Paths of the modules that a stage lacks."""
    return tuple(name for name in layout.absent(place.stage) if name not in place.kept)


def _into(boundary: StageBoundary, layer: int) -> list[tuple[Live, Entrance]]:
    """Of the activations at a stage boundary, those that enter one layer, and where."""
    return [(live, entrance) for live in boundary.values for entrance in live.entrances if entrance.layer == layer]


class Stage(nn.Module):
    """One stage of a model. The model is changed in place; the weights of absent modules should be dropped before.

    `forward(*received, **inputs)` takes the activations that `receives` lists (on the first stage `received` is ignored) and
    returns those that `sends` lists, or on the last stage the model's first output. Set from outside are `record`, the calls
    of the single-device model on the same inputs, and `inputs`, more arguments. Received tensors are `held` by number; those
    in `elsewhere` replace no argument, for a fault that puts them in at another place.
    """

    def __init__(self, model: nn.Module, layout: StageLayout, device: torch.device, place: StagePlace) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self.receives, self.sends = place.receives, place.sends
        self.first, self.last = place.stage == 0, place.stage == len(layout.chunks) - 1
        self.record = Record()
        self.inputs: Mapping[str, object] = {}
        self.output: object = None
        self.cache: Mapping[str, object] = {}
        self.device = device
        self.held: dict[int, torch.Tensor] = {}
        self.elsewhere: set[int] = set()
        self._sent: dict[int, torch.Tensor] = {}
        self._entered: set[int] = set()
        self._calls: dict[str, Iterator[RecordedCall]] = {}
        self._filled: list[Cache] = []
        self.own = layout.chunks[place.stage]
        for number in range(self.own.start, layout.depth):
            self._watch_entrances(number)
        self.absent = absent(layout, place)
        for name in self.absent:
            vars(model.get_submodule(name))["forward"] = self._answer(name)

    def owned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and values of the parameters that this stage has, each once, by the first name that it has here."""
        missing = tuple(f"{name}." for name in self.absent)
        named = self.model.named_parameters(remove_duplicate=False)
        first = {id(value): (name, value) for name, value in reversed([*named]) if not name.startswith(missing)}
        return iter(reversed(first.values()))

    def forward(self, *received: torch.Tensor, **inputs: object) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the model. Where autograd refuses its `a += b` on a view, run it again with copied module outputs."""
        self.held = {} if self.first else dict(zip(self.receives.numbers, received, strict=True))
        try:
            return self._run(inputs)
        except RuntimeError as error:
            if _REFUSAL not in str(error):
                raise
        with copied_outputs(self.model):
            return self._run(inputs)

    def forms(self, boundary: StageBoundary) -> tuple[torch.Tensor, ...]:
        """The activations at a stage boundary on the meta device, in the shapes of the single-device model's layer inputs."""
        entrances = [live.entrances[0] for live in boundary.values]
        layers = [self.layout.layer(entrance.layer) for entrance in entrances]
        return tuple(
            self.record.entering(layer, self.model.get_submodule(layer), entrance)
            for layer, entrance in zip(layers, entrances, strict=True)
        )

    def _run(self, inputs: Mapping[str, object]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        self._calls = {name: iter(calls) for name, calls in self.record.calls.items()}
        self._entered, self._sent = set(), {}
        self._filled = caches_in((), cache_in(self.model, self.output))
        output = self.model(**self.inputs, **inputs)
        self.output, self.cache = output, cache_in(self.model, output)
        if self.last:
            return whole(output[0])
        return tuple(self._sent[number].contiguous() for number in self.sends.numbers)

    def _watch_entrances(self, number: int) -> None:
        """Hook a layer: replace its arguments by received activations, or keep those that are to be sent."""
        module = self.model.get_submodule(self.layout.layer(number))
        receive = _into(self.receives, number) if number in self.own else []
        send = [] if number in self.own else _into(self.sends, number)
        if not receive and not send:
            return  # a hook would make this layer unlike its siblings, and a trace would run each of them

        def enter(
            _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
        ) -> tuple[tuple[object, ...], dict[str, object]]:
            if number not in self._entered:
                self._entered.add(number)
                for live, entrance in send:
                    tensor = self.held.get(live.value)
                    self._sent.setdefault(
                        live.value, tensor_at(module, args, kwargs, entrance) if tensor is None else tensor
                    )
                for live, entrance in (pair for pair in receive if pair[0].value not in self.elsewhere):
                    call = self.record.calls[self.layout.layer(number)][0]
                    form = argument(module, call.args, call.kwargs, entrance.argument)
                    args, kwargs = put(module, args, kwargs, entrance, ReceivedTensor(self.held[live.value], form))
            return args, kwargs

        module.register_forward_pre_hook(enter, with_kwargs=True)

    def _answer(self, name: str) -> Callable[..., object]:
        def answer(*args: object, **kwargs: object) -> object:
            call, caches = next(self._calls[name]), caches_in(args, kwargs)
            for write in call.writes if caches else ():
                if write.method in STATES and caches[write.part] in self._filled:
                    continue  # a state does not grow, and another layer may keep its own there
                getattr(caches[write.part], write.method)(
                    *(self._zeros(value) for value in write.args),
                    **{key: self._zeros(value) for key, value in write.kwargs.items()},
                )
            return self._zeros(call.output)

        return answer

    def _zeros(self, value: object) -> object:
        """Zeros in the shapes of recorded tensors, made from the shape: a recorded tensor would be a constant in a trace."""
        return mapped(value, lambda form: torch.zeros(form.shape, dtype=form.dtype, device=self.device))
