"""One layer drawn from top to bottom: its modules in order, how each lies on the ranks, and the collectives between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from shardproof.verify.report.drawing import Box

_WIDTH, _HEIGHT, _GAP, _INDENT = 460, 34, 18, 14


@dataclass(frozen=True, slots=True)
class Block:
    """One module of the picture: where its box lies, in pixels, and what stands in it."""

    x: int
    y: int
    width: int
    name: str
    style: str
    mark: str
    collectives: str


@dataclass(frozen=True, slots=True)
class LayerPicture:
    """The blocks of the first layer, and the size of the picture in pixels."""

    title: str
    blocks: Sequence[Block]
    width: int
    height: int
    block_height: int = _HEIGHT


def layer_picture(boxes: Sequence[Box]) -> LayerPicture | None:
    """The first layer that others repeat; None where no layer is repeated."""
    first = next((box.repeats for box in boxes if box.repeats is not None), None)
    if first is None:
        return None
    inside = [box for box in boxes if box.path.startswith(f"{first}.") and box.repeats is None]
    drawn = [box for box in inside if box.placements or box.collectives]
    blocks = []
    for number, box in enumerate(drawn):
        x = _INDENT * box.path.removeprefix(f"{first}.").count(".")
        name = box.path.removeprefix(f"{first}.")
        y = number * (_HEIGHT + _GAP)
        told = "; ".join(box.collectives)
        blocks.append(Block(x, y, _WIDTH - x, name, box.style, placement_mark(box) or "whole", told))
    height = max(1, len(blocks) * (_HEIGHT + _GAP))
    return LayerPicture(first, blocks, _WIDTH + 4, height) if blocks else None


def placement_mark(box: Box) -> str:
    """The colour by how the parameters lie on the ranks; none for a module without parameters."""
    texts = [placement for _, placement in box.placements]
    if any("/" in text for text in texts):
        return "packed"
    if any("S(" in text for text in texts):
        return "shard"
    return "whole" if texts else ""
