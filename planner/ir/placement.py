"""How one tensor lies on one mesh axis, as a value with a written form that parses back.

`R` replicate, `S(d)` shard of dim d, `S(d/k)` k packed blocks of dim d, each sharded, `S(d/1+4)` packed blocks of these sizes in
proportion, `P(sum)` partial sum, `?(reason)` unknown. The same text stands in errors, JSON, docs and tests.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Replicate:
    """Every rank holds the whole tensor."""

    def __str__(self) -> str:
        return "R"


@dataclass(frozen=True, slots=True)
class Shard:
    """Every rank holds one contiguous part of `dim`; with `blocks` > 1, one part of each of that many equal blocks.

    `dim` counts from zero. `Shard(0, blocks=2)` is a gate|up weight of which each rank holds a slice of either half. Blocks of
    unequal sizes have these in `parts`, in lowest terms: `packed(1, (1, 4))` is a weight whose input is attention beside a feed-
    forward of four times its width.
    """

    dim: int
    blocks: int = 1
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.dim < 0:
            raise ValueError(f"Shard counts dims from zero, got dim {self.dim}; pass `dim % ndim`.")
        if self.blocks < 1:
            raise ValueError(f"Shard needs at least one block, got {self.blocks}.")
        if self.parts and (len(self.parts) != self.blocks or len(set(self.parts)) < 2 or gcd(*self.parts) > 1):
            raise ValueError(f"Shard takes unequal blocks in lowest terms, got {self.parts}; write packed(dim, sizes).")

    def __str__(self) -> str:
        blocks = "+".join(map(str, self.parts)) or str(self.blocks)
        return f"S({self.dim})" if self.blocks == 1 else f"S({self.dim}/{blocks})"

    def to(self, dim: int) -> "Shard":
        """The same shard on another dim."""
        return Shard(dim, self.blocks, self.parts)

    def block_sizes(self, size: int) -> tuple[int, ...] | None:
        """The sizes of the blocks of a dim of this size; None where it does not divide into them."""
        parts = self.parts or (1,) * self.blocks
        return None if size % sum(parts) else tuple(size // sum(parts) * part for part in parts)


def packed(dim: int, sizes: Sequence[int]) -> Shard:
    """A shard of packed blocks whose sizes are in this proportion."""
    lowest = gcd(*sizes)
    parts = tuple(size // lowest for size in sizes)
    return Shard(dim, len(parts)) if len(set(parts)) == 1 else Shard(dim, len(parts), parts)


@dataclass(frozen=True, slots=True)
class Partial:
    """Every rank holds a tensor of full shape, and the whole is their reduction."""

    op: str = "sum"

    def __str__(self) -> str:
        return f"P({self.op})"


@dataclass(frozen=True, slots=True)
class Unknown:
    """The placement is not known, for this reason. It never becomes Replicate."""

    reason: str

    def __str__(self) -> str:
        return f"?({self.reason})"


Placement: TypeAlias = Replicate | Shard | Partial | Unknown

R = Replicate()
P = Partial()

_SHARD = re.compile(r"S\((\d+)(?:/(\d+(?:\+\d+)*))?\)")
_PARTIAL = re.compile(r"P\((\w+)\)")
_UNKNOWN = re.compile(r"\?\((.*)\)", re.DOTALL)


def parse(text: str) -> Placement:
    """Read a placement from its written form, such as `S(0/2)`.

    Raises:
        ValueError: the text is none of the forms; names them.
    """
    if text == "R":
        return R
    if found := _SHARD.fullmatch(text):
        blocks = [int(part) for part in (found[2] or "1").split("+")]
        return packed(int(found[1]), blocks) if len(blocks) > 1 else Shard(int(found[1]), blocks[0])
    if found := _PARTIAL.fullmatch(text):
        return Partial(found[1])
    if found := _UNKNOWN.fullmatch(text):
        return Unknown(found[1])
    raise ValueError(f"{text!r} is no placement; write R, S(dim), S(dim/blocks), P(sum) or ?(reason).")


def local_shape(shape: tuple[int, ...], placement: Placement, degree: int) -> tuple[int, ...]:
    """The shape of the first rank's part of a tensor of this shape.

    A shard may be uneven: of every block, the first ranks hold `ceil(size / degree)` elements and the last one the rest, as
    `torch.chunk` does.

    Raises:
        ValueError: the dim does not divide into equal blocks, or a rank would hold nothing.
    """
    if not isinstance(placement, Shard) or degree == 1:
        return shape
    if placement.dim >= len(shape):
        raise ValueError(f"{placement} needs more dims than the shape {list(shape)} has.")
    if placement.parts:
        sizes = placement.block_sizes(shape[placement.dim])
        if sizes is None or any(each % degree for each in sizes):
            raise ValueError(
                f"dim {placement.dim} of {list(shape)} does not divide as {placement} over {degree} ranks."
            )
        return (*shape[: placement.dim], shape[placement.dim] // degree, *shape[placement.dim + 1 :])
    size, odd = divmod(shape[placement.dim], placement.blocks)
    if odd:
        raise ValueError(f"dim {placement.dim} of {list(shape)} does not divide into {placement.blocks} equal blocks.")
    part = -(-size // degree)
    if part * (degree - 1) >= size:
        raise ValueError(f"dim {placement.dim} of {list(shape)} has too few elements for {degree} ranks.")
    return (*shape[: placement.dim], part * placement.blocks, *shape[placement.dim + 1 :])
