"""`python -m benchmarks zoo`: every causal-LM type, resumable; prints a table, writes JSON lines and, if asked, docs/zoo.md."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.types import causal_types
from benchmarks.zoo.page import page, totals
from benchmarks.zoo.rows import Row, disagreements, read_rows, row_of
from tests.gate import PATH, ROOT

LIMITS = {"proof": 300.0, "run": 900.0, "ranks": 600.0}
"""Seconds of processor time for one type at one level, after which its process is ended and the type is written down as too
slow.
"""
SHARED = 6
"""How many times as long a process may take by the clock, on a machine that has other work."""


@dataclass
class Measurer:
    """One process that measures types, started anew after a type that ended it."""

    process: subprocess.Popen[str] | None = None
    once: bool = False
    shipped: bool = True
    limits: Mapping[str, float] = field(default_factory=lambda: LIMITS)
    libraries: Path | None = None
    """A folder whose packages stand before those of the environment."""

    def ask(self, row: Row, level: str) -> Row:
        """The row with what was found at a level; a process that dies or does not answer is what was found."""
        process = self.process = self.process or _started(self.libraries)
        assert process.stdin is not None and process.stdout is not None
        asked = {"row": json.loads(row.line()), "level": level, "once": self.once, "shipped": self.shipped}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        ready = _answers(process, self.limits[level])
        line = process.stdout.readline() if ready else ""
        if line:
            return row_of(json.loads(line))
        self.end()
        reason = f"its process ended with {process.returncode}" if ready else f"no answer in {self.limits[level]:g} s"
        return replace(row, stage=level, reason=reason)

    def end(self) -> None:
        """End the process and what it started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            self.process = None


def _answers(process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Whether a process writes something before it has used so many seconds of processor time."""
    began = _processor_time(process.pid)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]  # it was started with a pipe
        for _ in range(SHARED):
            if selector.select(seconds):
                return True
            if _processor_time(process.pid) - began >= 0.8 * seconds:
                break
    return False


def _processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used; those of the clock where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError):
        return time.monotonic()


def _started(libraries: Path | None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.zoo.measure"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": _path(libraries)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def _path(libraries: Path | None) -> str:
    """This checkout, a folder with libraries to measure, and what the environment has."""
    return os.pathsep.join(filter(None, (PATH, str(libraries or ""), os.environ.get("PYTHONPATH"))))


@contextmanager
def measuring(
    *,
    once: bool = False,
    shipped: bool = True,
    limits: Mapping[str, float] = LIMITS,
    libraries: Path | None = None,
) -> Iterator[Measurer]:
    """A measurer whose process has ended afterwards."""
    made = Measurer(once=once, shipped=shipped, limits=limits, libraries=libraries)
    try:
        yield made
    finally:
        made.end()


def failed(row: Row) -> bool:
    """Whether something of this type is not right yet."""
    return row.stage != "done" or row.mine is None or not row.mine.right("proof") or "refuted" in row.mine.run.values()


def todo(types: tuple[str, ...], known: dict[str, Row], levels: tuple[str, ...], redo: str) -> list[tuple[str, str]]:
    """Pairs of type and level that are still to be measured. `redo` is `all`, `failed` or empty."""
    wanted = []
    for name in types:
        row = known.get(name)
        again = redo == "all" or (redo == "failed" and (row is None or failed(row)))
        if "proof" in levels and (row is None or again):
            wanted.append((name, "proof"))
        unrun = row is None or again or (row.mine is not None and not row.mine.run)
        wanted += [(name, level) for level in ("run", "ranks") if level in levels and unrun]
    return wanted


def main(types: tuple[str, ...], out: Path, *, levels: tuple[str, ...], redo: str, page_at: Path | None) -> int:
    """Measure what is missing and print the totals; exit 1 where proof and run disagree."""
    console = Console(stderr=True)
    known = read_rows(out)
    wanted = todo(types or causal_types(), known, levels, redo)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with out.open("a") as file, measuring() as measurer, Progress(*columns, console=console) as progress:
        task = progress.add_task("zoo", total=len(wanted))
        for name, level in wanted:
            progress.update(task, description=f"{level} {name}")
            row = known.get(name, Row(name, "load"))
            if level == "proof" or row.mine is not None:
                known[name] = row = measurer.ask(row, level)
                file.write(row.line() + "\n")
                file.flush()
            progress.advance(task)
    rows = [known[name] for name in sorted(known)]
    Console().print(totals(rows))
    wrong = disagreements(rows)
    for line in wrong:
        Console().print(line, markup=False)
    if page_at is not None:
        page_at.write_text(page(rows))
    return int(bool(wrong))
