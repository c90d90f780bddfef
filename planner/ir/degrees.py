"""The tensor-parallel degrees at which a plan is right, and what forbids the others. No torch here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from shardproof.planner.ir.findings import Place

MOST_RANKS = 1024
"""The largest degree that is decided."""
SHOWN = 12
"""The most degrees, or ranges of degrees, in a message; JSON has all."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing that limits the degree: a sharded dim, or (with `size` None) a fault that no size explains.

    Attributes:
        size: the elements of the sharded dim; of one block, if the dim is packed.
        even: whether all ranks must hold equally many elements; else the last may hold fewer, but not none (as
            `torch.chunk` cuts).
        what: the size in words, such as `8 parts of 128 (num_key_value_heads)`, or the message of a fault.
        place: the entry that shards the dim, its module and source line.
        unit: the features that each of `size` stands for: those of one block, where a rank has to hold whole blocks.
    """

    size: int | None
    even: bool
    what: str
    place: Place
    unit: int = 1

    def allows(self, degree: int) -> bool:
        """Whether this dim can be split over so many ranks."""
        if self.size is None:
            return degree == 1
        if self.even:
            return self.size % degree == 0
        return -(-self.size // degree) * (degree - 1) < self.size

    @property
    def reason(self) -> str:
        """One clause: the size, and why it limits the degree."""
        if self.size is None:
            return self.what
        return f"{self.what}: " + ("every rank needs equally many" if self.even else "every rank needs one at least")


@dataclass(frozen=True)
class Degrees:
    """The exact set of legal degrees up to `MOST_RANKS`, and for every other degree the limit that forbids it."""

    legal: tuple[int, ...]
    forbidden: Mapping[int, Limit]

    def why_not(self, degree: int) -> Limit | None:
        """What forbids a degree; None where it is legal."""
        return self.forbidden.get(degree)

    @cached_property
    def limits(self) -> tuple[tuple[Limit, tuple[int, ...]], ...]:
        """Every limit that forbids a degree with the degrees it forbids, the one of the smallest degree first."""
        by: dict[Limit, list[int]] = {}
        for degree, limit in sorted(self.forbidden.items()):
            by.setdefault(limit, []).append(degree)
        return tuple((limit, tuple(degrees)) for limit, degrees in by.items())

    def listed(self) -> str:
        """The legal degrees as text: three or more in a row become a range, `1-8, 16, 32`, and a long list is cut."""
        told = [part for first, last in _runs(self.legal) for part in _apart(first, last)]
        left = sum(last - first + 1 for first, last in told[SHOWN:])
        more = [f"... and {left} more"] if left else []
        return ", ".join([*(_span(*part) for part in told[:SHOWN]), *more]) or "none"

    def powers(self) -> str:
        """The legal powers of two, how many other degrees are legal, and what forbids the next power of two."""
        doubled = [1 << power for power in range(MOST_RANKS.bit_length())]
        others = [degree for degree in self.legal if degree not in doubled]
        told = ", ".join(str(degree) for degree in doubled if degree in self.legal) or "none"
        if others:
            told += f" and {len(others)} more, such as {others[0]}"
        following = next((degree for degree in doubled if degree in self.forbidden), None)
        if following is None:
            return told
        limit = self.forbidden[following]
        return f"{told}; {following} is forbidden by {_whose(limit, limit.what)}"

    def clauses(self) -> tuple[str, ...]:
        """The legal degrees, then what forbids the others: `3, 5, 6 and 1015 more are forbidden by ENTRY: REASON`."""
        return (
            self.listed(),
            *(f"{_few(against)} forbidden by {_whose(limit, limit.reason)}" for limit, against in self.limits),
        )


def _whose(limit: Limit, why: str) -> str:
    return f"{limit.place.entry or limit.place.module or 'the model'}: {why}"


def degrees_within(limits: tuple[Limit, ...], faults: Mapping[int, Limit] | None = None) -> Degrees:
    """The degrees that every limit allows, less those at which a fault was found.

    If several limits forbid a degree, the one with the smallest size is named, because it forbids the most degrees.
    """
    tightest = sorted(limits, key=lambda limit: (limit.size is not None, limit.size or 0, not limit.even))
    forbidden = dict(faults or {})
    for degree in range(2, MOST_RANKS + 1):
        against = next((limit for limit in tightest if not limit.allows(degree)), None)
        if against is not None and degree not in forbidden:
            forbidden[degree] = against
    return Degrees(tuple(d for d in range(1, MOST_RANKS + 1) if d not in forbidden), forbidden)


def spans(degrees: tuple[int, ...]) -> str:
    """Ascending numbers, with ranges written as `1-3, 5`."""
    return ", ".join(_span(first, last) for first, last in _runs(degrees))


def _span(first: int, last: int) -> str:
    return f"{first}-{last}" if last > first else str(first)


def _apart(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """One range; two consecutive numbers stay separate."""
    return ((first, first), (last, last)) if last - first == 1 else ((first, last),)


def _runs(degrees: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    first = last = None
    for degree in degrees:
        if first is None or last is None:
            first = last = degree
        elif degree == last + 1:
            last = degree
        else:
            yield first, last
            first = last = degree
    if first is not None and last is not None:
        yield first, last


def _few(degrees: tuple[int, ...]) -> str:
    if len(degrees) == 1:
        return f"{degrees[0]} is"
    shown = ", ".join(map(str, degrees[:3]))
    return f"{shown} and {len(degrees) - 3} more are" if len(degrees) > 3 else f"{shown} are"
