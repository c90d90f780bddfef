"""`python -m benchmarks others`: every type that is no causal language model, in a random order, resumable."""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.others.outcome import Outcome, outcome
from benchmarks.others.page import page
from benchmarks.types import other_types
from benchmarks.zoo.bench import measuring
from benchmarks.zoo.rows import Row, read_rows

LIMITS = {"proof": 90.0, "run": 90.0}
"""Seconds for one type at one level."""
Page: TypeAlias = Callable[[Sequence[Row]], str]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is measured: at most `limit` types (0: all) in the order of `seed`, none begun after `seconds` (0: no end); `redo`
    is `all`, `failed` or empty."""

    limit: int = 0
    seed: int = 0
    seconds: float = 0.0
    redo: str = ""


def todo(types: tuple[str, ...], known: dict[str, Row], asked: Asked) -> list[str]:
    """The types that are still to be measured, in a random order that the seed fixes."""
    every = list(types)
    random.Random(asked.seed).shuffle(every)
    every = every[: asked.limit or None]
    return [name for name in every if name not in known or _again(known[name], asked.redo)]


def _again(row: Row, redo: str) -> bool:
    right = outcome(row).kind in (Outcome.CONFIRMED, Outcome.WHOLE)
    return redo == "all" or (redo == "failed" and not right)


def main(
    types: tuple[str, ...],
    out: Path,
    *,
    asked: Asked,
    page_at: Path | None,
    page_of: Page = page,
    limits: Mapping[str, float] = LIMITS,
) -> int:
    """Measure what is missing and print the counts; exit 1 where the run refuted what was proved, or where we crashed."""
    console, began = Console(stderr=True), time.monotonic()
    known = read_rows(out)
    wanted = todo(types or other_types(), known, asked)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        out.open("a") as file,
        measuring(once=True, shipped=False, limits=limits) as measurer,
        Progress(*columns, console=console) as progress,
    ):
        task = progress.add_task("others", total=len(wanted))
        for name in wanted:
            if asked.seconds and time.monotonic() - began > asked.seconds:
                break
            progress.update(task, description=name)
            row = measurer.ask(Row(name, "load"), "proof")
            if row.mine is not None and row.mine.fraction > 0 and row.mine.right("proof"):
                row = measurer.ask(row, "run")
            known[name] = row
            file.write(row.line() + "\n")
            file.flush()
            progress.advance(task)
    rows = [known[name] for name in sorted(known)]
    counts = Counter(outcome(row).kind for row in rows)
    for kind in Outcome:
        Console().print(f"{counts[kind]:4} {kind.value}")
    if page_at is not None:
        page_at.write_text(page_of(rows))
    return int(bool(counts[Outcome.WRONG] or counts[Outcome.CRASHED]))
