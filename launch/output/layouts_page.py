"""Ranked layouts as one self-contained page: the table, the best layout's stages as bars of bytes, and the commands."""

from collections.abc import Iterator
from html import escape

from shardproof.launch.output.layouts import NOTE, columns, commands, gathered, headline, nothing_legal, row
from shardproof.planner.layouts.cost import Facts, Load, Machine, RankMemory
from shardproof.planner.layouts.search import Choice, Search
from shardproof.verify.report.formats.html import page, size, table

_PARTS = (("parameters", "shard"), ("gradients", "packed"), ("optimizer", "open"), ("cache", "packed"))
"""What a rank holds, and the colour of its part of a bar; activations, which are estimated, are the last."""


def layouts_html(model: str, found: Search, facts: Facts, machine: Machine, load: Load) -> str:
    """Everything that the text has, of every legal layout."""
    title = headline(model, machine, load)
    parts = [f"<h1>{escape(title)}</h1>"]
    if found.choices:
        first = found.choices[0]
        rows = (row(choice, load, best=first.seconds) for choice in found.choices)
        parts += [table(rows, head=columns(load)), f"<p>{escape(NOTE)}</p>", *_best(model, first, machine, load)]
    else:
        parts.append(f"<p>{escape(nothing_legal(found).capitalize())}.</p>")
    if not load.train and facts.cache is None:
        parts.append("<p>The cache of this model is not known, and not counted.</p>")
    if found.illegal:
        parts += ["<h2>Not legal</h2>", table(gathered(found), head=("layouts", "why"))]
    return page(title, parts)


def _best(model: str, choice: Choice, machine: Machine, load: Load) -> Iterator[str]:
    yield f"<h2>The first: {escape(str(choice.layout))}</h2>"
    yield f"<p>Bytes on a rank of each stage, of {size(machine.memory)}: {_legend(choice.held)}.</p>"
    for number, (stage, layers) in enumerate(zip(choice.stages, choice.layers, strict=True)):
        name = f"stage {number}, {layers} layer{'' if layers == 1 else 's'}: {size(stage.total)}"
        yield f'<div class="stacked">{_bar(stage, machine.memory)}</div><p class="under">{escape(name)}</p>'
    yield "<h2>Start it with</h2>"
    yield f"<pre>{escape(chr(10).join(commands(model, choice, machine, load)))}</pre>"


def _held(stage: RankMemory) -> list[tuple[str, str, int]]:
    """Name, colour and bytes of what is held at all."""
    exact = [(name, colour, int(getattr(stage, name))) for name, colour in _PARTS]
    return [one for one in (*exact, ("activations (estimated)", "whole", stage.activations)) if one[2]]


def _legend(stage: RankMemory) -> str:
    return ", ".join(f'<span class="mark {colour}"></span>{name}' for name, colour, _ in _held(stage))


def _bar(stage: RankMemory, memory: float) -> str:
    boxes = (
        f'<div class="{colour}" style="width:{100 * count / memory:.2f}%" title="{name}: {size(count)}"></div>'
        for name, colour, count in _held(stage)
    )
    return "".join(boxes)
