"""Every layout of a number of devices, and the reason why a layout is not legal. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass

from shardproof.planner.ir.degrees import Degrees


@dataclass(frozen=True, slots=True)
class Layout:
    """The degree of each axis, for `tp * pp * dp` devices. With `experts` the tensor-parallel ranks hold whole experts: ep
    is tp.
    """

    tp: int
    pp: int
    dp: int
    experts: bool = False

    @property
    def ep(self) -> int:
        """The number of ranks over which whole experts are distributed."""
        return self.tp if self.experts else 1

    def __str__(self) -> str:
        return f"tp {self.tp}{f' = ep {self.ep}' if self.experts else ''} x pp {self.pp} x dp {self.dp}"


def layouts(devices: int, *, experts: bool = False) -> Iterator[Layout]:
    """All layouts of the devices, the smallest degrees first; with `experts` also those with whole experts on the ranks."""
    for tp in divisors(devices):
        for pp in divisors(devices // tp):
            yield Layout(tp, pp, devices // tp // pp)
            if experts and tp > 1:
                yield Layout(tp, pp, devices // tp // pp, experts=True)


def why_not(layout: Layout, *, degrees: Degrees, depth: int, batch: int) -> str | None:
    """The first reason against a layout; None if it is legal."""
    if layout.tp not in degrees.legal:
        limit = degrees.why_not(layout.tp)
        entry = limit.place.entry or limit.place.module if limit else None
        return f"tp {layout.tp}: {entry or 'the plan'}: {limit.reason if limit else 'more ranks than degrees are told for'}"
    if layout.pp > 1 and depth == 0:
        return f"pp {layout.pp}: the plan lists no layers that stages could share (no pipeline plan)"
    if layout.pp > max(depth, 1):
        return f"pp {layout.pp}: there are {depth} layers, and every stage needs one"
    if layout.dp > batch:
        return f"dp {layout.dp}: a batch of {batch} leaves replicas without a sequence"
    return None


def divisors(number: int) -> list[int]:
    """The divisors of a number, in ascending order."""
    return [one for one in range(1, number + 1) if number % one == 0]
