"""`python -m benchmarks layouts`: what `plan layout` says a rank holds, keeps and sends, against what ranks did.

Every type's suggested plan on a twin, at degrees 2 and 4, with the ranks as threads of this process. Of the first rank: elements
of parameters and gradients, bytes of what AdamW keeps, every collective of one forward and backward, by kind and elements, and
elements of the cache after a prefill.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from benchmarks.types import causal_types
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.inputs.example import example_inputs
from shardproof.planner.layouts.cost import Facts, Load, rank_memory
from shardproof.planner.layouts.measure import measure
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.twins.twin import twin
from shardproof.verify.proof.degrees import legal_degrees
from shardproof.verify.run.collectives.threads import Threads
from shardproof.verify.run.collectives.threads import _Group as Group
from shardproof.verify.stages.case import Case
from tests.ranks.recorded import TOKENS, Recorded, Trained, measured

DEGREES = (2, 4)


@dataclass(frozen=True, slots=True)
class Row:
    """`outcome` is `equal`, `differs`, or `not run`, with what differs or why."""

    type: str
    degree: int
    outcome: str
    note: str = ""


class _Counting:
    """Counts this rank's collectives while it is entered. torch calls a group that is written in Python directly, past its
    dispatcher, so they are counted where the group is asked.
    """

    def __init__(self) -> None:
        self.found: Counter[tuple[str, int]] = Counter()

    def __enter__(self) -> None:
        _OPEN.counter = self

    def __exit__(self, *_: object) -> None:
        _OPEN.counter = None


class _Open(threading.local):
    """The counter that a rank's thread has entered."""

    counter: _Counting | None = None


_OPEN = _Open()


@contextmanager
def _counted() -> Iterator[None]:
    """Groups of threads tell the open counter what each rank puts in."""

    def telling(kind: str, method: Callable[..., object], at: int) -> Callable[..., object]:
        def told(group: object, *args: Any) -> object:
            if _OPEN.counter is not None:
                _OPEN.counter.found[kind, args[at][0].numel()] += 1
            return method(group, *args)

        return told

    reduce, gather = Group.allreduce, Group.allgather
    with (
        patch.object(Group, "allreduce", telling("all-reduce", reduce, 0)),
        patch.object(Group, "allreduce_coalesced", telling("all-reduce", reduce, 0)),
        patch.object(Group, "allgather", telling("all-gather", gather, 1)),
    ):
        yield


def predicted(facts: Facts, tp: int, tokens: tuple[int, int] = TOKENS) -> Recorded:
    """What `plan layout` counts for the first rank, for the rows and tokens of the recording."""
    sent = Counter((one.kind.value, one.of(*tokens, tp=tp)) for one in facts.traffic)
    return sum(facts.elements(tp)), sent


def measured_row(name: str, degree: int) -> Row:
    """One type at one degree."""
    try:
        small = twin(load(name), tp=degree)
        plan = suggest(small).plan
        degrees = legal_degrees(small, plan)
        if degree not in degrees.legal:
            return Row(name, degree, "not run", "the plan forbids the degree")
        model = build(small)
        facts = measure(model, plan, degrees, context=TOKENS[1], train=True)
        names = set(example_inputs(model))
        kept: list[list[int | None]] = [[] for _ in range(degree)]
        trained: list[list[Trained]] = [[] for _ in range(degree)]
        given: list[list[tuple[int, int]]] = [[] for _ in range(degree)]
        with quiet(), _counted(), Threads(degree) as ranks:
            case = Case(small, plan, degree, 1)
            found = ranks.run(
                lambda rank: measured(
                    case, _Counting(), kept=kept[rank], trained=trained[rank], given=given[rank], names=names
                ),
                timeout=240.0,
            )[0]
    except Exception as error:  # what cannot be loaded or run is another benchmark's question
        return Row(name, degree, "not run", f"{type(error).__name__}: {' '.join(str(error).split())}"[:160])
    wanted, keeps = predicted(facts, degree, given[0][0]), predicted_cache(facts, degree)
    differs = [_difference(wanted, found)] if found != wanted else []
    told = predicted_training(facts, degree)
    differs += [f"gradients and optimizer {told} told, {one} held" for one in trained[0] if one != told]
    if None in kept[0] or keeps is None:
        note = "cache not told" if keeps is None else "cache not held: the forward raises"
    else:
        note = "estimated where data tells which tokens take part" if any(t.estimated for t in facts.traffic) else ""
        differs += [f"cache {keeps} told, {one} held" for one in kept[0] if one != keeps]
    return Row(name, degree, "differs", "; ".join(differs)) if differs else Row(name, degree, "equal", note)


def predicted_training(facts: Facts, tp: int) -> Trained:
    """Elements of gradients, and bytes of what AdamW keeps, in float64."""
    load_ = Load(context=TOKENS[1], batch=TOKENS[0], width=8, train=True)
    told = rank_memory(facts, range(facts.depth + 2), load_, tp=tp, dp=1)
    return told.gradients // 8, told.optimizer


def predicted_cache(facts: Facts, tp: int) -> int | None:
    """Elements that `plan layout` counts for the sequences of the recording, on one rank."""
    if facts.cache is None:
        return None
    return TOKENS[0] * sum(one.elements // (tp if one.split else 1) for layer in facts.cache for one in layer)


def _difference(wanted: Recorded, found: Recorded) -> str:
    parts = [] if wanted[0] == found[0] else [f"parameters {wanted[0]} told, {found[0]} held"]
    for key in sorted({*wanted[1], *found[1]}):
        if wanted[1][key] != found[1][key]:
            parts.append(f"{key[0]} of {key[1]}: {wanted[1][key]} told, {found[1][key]} sent")
    return "; ".join(parts)


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Go over the types that `out` (JSON lines) does not hold yet; 1 where anything differs."""
    rows = [Row(**json.loads(line)) for line in out.read_text().splitlines()] if out.exists() else []
    known = {(row.type, row.degree) for row in rows}
    with out.open("a") as file:
        for name in types or causal_types():
            for degree in DEGREES:
                if (name, degree) not in known:
                    rows.append(measured_row(name, degree))
                    file.write(json.dumps(asdict(rows[-1])) + "\n")
                    file.flush()
    Console().print(_table(rows))
    return int(any(row.outcome == "differs" for row in rows))


def _table(rows: Sequence[Row]) -> Table:
    table = Table("outcome", "rows", "of them", title="predicted against recorded: bytes of parameters, collectives")
    for outcome in ("equal", "differs", "not run"):
        mine = [row for row in rows if row.outcome == outcome]
        named = [f"{row.type}@{row.degree}: {row.note}" for row in mine if row.note]
        table.add_row(outcome, str(len(mine)), "\n".join(named))
    return table
