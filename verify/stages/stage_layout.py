"""Which modules and layers each pipeline stage has."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, starmap

from torch import nn

from shardproof.planner.ir.dataflow import Cut
from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.plan import PpEntry, join
from shardproof.planner.tracing.module_tree import layer_stack, members, same_member


@dataclass(frozen=True, slots=True)
class StageLayout:
    """Paths (as the head model sees them) of modules before the layers, of the list of layers, and of modules after it.

    `depth` is the number of layers, `chunks` are the layers of each stage.
    """

    before: tuple[str, ...]
    layers: str
    depth: int
    after: tuple[str, ...]
    chunks: tuple[range, ...]

    @property
    def named(self) -> tuple[str, ...]:
        """Paths of all modules that some stage lacks."""
        return (*self.before, *self._layers(range(self.depth)), *self.after)

    def absent(self, stage: int) -> tuple[str, ...]:
        """Paths of the modules that one stage lacks."""
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
        """The path of one layer."""
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
        raise ArgumentError(f"{stack} holds {len(layers)} layers, too few for {stages} pipeline stages.")
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
