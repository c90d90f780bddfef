"""What layers leave for later ones past their arguments, in the modes in which no stage is traced: training and decoding.

A stage's program is compared with the whole one in evaluation. In another mode a layer may also read a tensor that a layer of
another stage made: from a shared object, a list, or the other layer's cache.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from shardproof.planner.ir.graph import Graph, Op
from shardproof.verify.stages.stage_layout import StageLayout


@dataclass(frozen=True, slots=True)
class LeftValue:
    """An op of one stage in `reader` that is given what an op in `writer`, of another stage, made."""

    op: Op
    reader: str
    writer: str


def left_values(graph: Graph, layout: StageLayout, listed: Collection[str]) -> Iterator[LeftValue]:
    """Values that cross from one stage to another, and are none of the `listed` arguments of the layer that reads them."""
    made: dict[int, tuple[int, str]] = {}
    given = _arguments(graph, layout, listed)
    for position, op in enumerate(graph.ops):
        own = _stage(op.module, layout)
        if _layer(op.module, layout.layers) is not None and position not in given:
            continue  # a part of a layer that code outside the layers calls, such as a loss
        before = [made[number] for number in op.inputs if number in made]
        for number in op.inputs if own is not None else ():
            stage, writer = made.get(number, (own, ""))
            if stage != own and number not in given.get(position, ()):
                yield LeftValue(op, op.module, writer)
        if own is not None:
            made.update(dict.fromkeys(op.outputs, (own, op.module)))
        elif before:  # code outside the layers: as far back as the last stage that it needs
            made.update(dict.fromkeys(op.outputs, max(before)))


def _stage(path: str, layout: StageLayout) -> int | None:
    """The one stage that has a module; None of what every stage has."""
    layer = _layer(path, layout.layers)
    if layer is not None:
        return next(stage for stage, chunk in enumerate(layout.chunks) if layer in chunk)
    if any(_within(path, one) for one in layout.before):
        return 0
    return len(layout.chunks) - 1 if any(_within(path, one) for one in layout.after) else None


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def _arguments(graph: Graph, layout: StageLayout, listed: Collection[str]) -> Mapping[int, set[int]]:
    """By the position of every op in a layer, what the layer's call is given by the listed arguments, which are sent along."""
    found: dict[int, set[int]] = {}
    for call in graph.calls:
        if call.module.rpartition(".")[0] == layout.layers:
            values = {number for name, number in call.arguments if name in listed}
            found.update(dict.fromkeys(range(*call.ran), values))
    return found


def _layer(path: str, layers: str) -> int | None:
    if not path.startswith(f"{layers}."):
        return None
    number = path.removeprefix(f"{layers}.").partition(".")[0]
    return int(number) if number.isdecimal() else None
