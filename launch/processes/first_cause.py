"""Which of several failed ranks failed first of itself: the others fail later, because their peer is gone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardproof.verify.run.outcome import PEER_LOST

PEER_ERRORS = (PEER_LOST.pattern, "closed by peer", "timed out", "timeout", "gloo", "shardproof-")
"""Regular expressions, in any case, for the errors of a rank that only lost its peer: its connection, its collective, or the
shared memory (`shardproof-...`) that the peer made."""
_LOST = re.compile("|".join(PEER_ERRORS), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RankError:
    """An error of one rank, and when it came: any clock, the same for all ranks."""

    rank: int
    when: float
    text: str


def first_cause(errors: Sequence[RankError]) -> RankError:
    """The earliest error that is not the loss of a peer; the earliest of all where every one is.

    Raises:
        ValueError: there is no error.
    """
    in_time = sorted(errors, key=lambda error: error.when)
    if not in_time:
        raise ValueError("first_cause needs at least one error")
    return next((error for error in in_time if not _LOST.search(error.text)), in_time[0])


def last_line(log: Path, *, absent: str = "") -> str:
    """The last line that is not empty in what a process wrote; of a crashed interpreter, the line that says so.

    `absent` is given where there is no such line or no such file.
    """
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return absent
    fatal = [line for line in lines if line.startswith("Fatal Python error")]  # the stacks of all threads follow it
    return (fatal or lines or [absent])[-1]
