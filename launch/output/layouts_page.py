"""Ranked layouts as one self-contained page: the table, the best layout's stages as bars of bytes, and the commands."""

from collections.abc import Iterator
from dataclasses import dataclass

from shardproof.launch.output.layouts_text import (
    NOTE,
    ServedModel,
    columns,
    commands,
    gathered,
    headline,
    nothing_legal,
    row,
    uncounted,
)
from shardproof.planner.ir.readable_text import format_bytes
from shardproof.planner.layouts.cost import Facts, Load, Machine, RankMemory
from shardproof.planner.layouts.search import Choice, Search
from shardproof.verify.report.formats.html import render

_PARTS = (("parameters", "shard"), ("gradients", "packed"), ("optimizer", "open"), ("cache", "packed"))
"""What a rank holds, and the colour of its part of a bar; activations, which are estimated, are the last."""


@dataclass(frozen=True, slots=True)
class BarPart:
    """Part of a stage's bar: what it is, its colour, its bytes in words, and its share of the device's memory in percent."""

    name: str
    colour: str
    size: str
    percent: float


@dataclass(frozen=True, slots=True)
class StageMemory:
    """The bar of one stage, and the line under it."""

    name: str
    parts: tuple[BarPart, ...]


def layouts_html(model: ServedModel, found: Search, facts: Facts, machine: Machine, load: Load) -> str:
    """Everything that the text has, of every legal layout."""
    first = found.choices[0] if found.choices else None
    return render(
        "layouts.html.jinja",
        title=headline(model.title, machine, load),
        rows=[row(choice, load, best=first.seconds) for choice in found.choices] if first else [],
        columns=columns(load),
        note=NOTE,
        first=first.layout if first else "",
        memory=format_bytes(machine.memory),
        stages=list(_stages(first, machine)) if first else [],
        commands=commands(model, first, machine, load) if first else [],
        nothing=nothing_legal(found).capitalize(),
        uncounted=[said.capitalize() for said in uncounted(facts, load)],
        illegal=gathered(found),
    )


def _stages(choice: Choice, machine: Machine) -> Iterator[StageMemory]:
    for number, (stage, layers) in enumerate(zip(choice.stages, choice.layers, strict=True)):
        name = f"stage {number}, {layers} layer{'' if layers == 1 else 's'}: {format_bytes(stage.total)}"
        yield StageMemory(name, tuple(_bar(stage, machine.memory)))


def _bar(stage: RankMemory, memory: float) -> Iterator[BarPart]:
    """What the stage holds at all."""
    exact = [(name, colour, int(getattr(stage, name))) for name, colour in _PARTS]
    for name, colour, count in (*exact, ("activations (estimated)", "whole", stage.activations)):
        if count:
            yield BarPart(name, colour, format_bytes(count), 100 * count / memory)
