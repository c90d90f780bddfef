"""A hundred injected faults: how long until all ranks have ended, and whether anything is left running or listening."""

import json
import random
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
from rich.console import Console
from rich.progress import track
from rich.table import Table

from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.twins.twin import twin
from shardproof.verify.stages.case import Case
from tests.ranks.faulty import Fault, faulty

COUNT = 100
LIMIT = 20.0
"""Seconds for one case; the ranks take some more to start and to end."""
HUNG = LIMIT + 120.0
"""Seconds after which a fault counts as a hang; far beyond any of our limits."""
FORWARDS = 8
"""A fault strikes in one of the first forwards: full, padded, cached, of the backward."""


@dataclass(frozen=True, slots=True)
class Struck:
    """One injected fault and what became of it. `processes` and `ports` are those that were still there afterwards."""

    fault: str
    rank: int
    after: int
    seconds: float
    verdict: str
    message: str
    processes: int
    ports: int

    @property
    def hung(self) -> bool:
        """Whether it took longer than any limit explains."""
        return self.seconds > HUNG


def strike(fault: Fault, *, rank: int, after: int, tp: int) -> Struck:
    """One fault in a group of its own."""
    llama = load("llama")
    case = Case(twin(faulty(fault, rank=rank, after=after), tp=tp), carried_plan(llama, build(llama)), tp)
    began = time.monotonic()
    with _watched() as ports:
        (result,) = confirm_cases((case,), timeout=LIMIT)
    return Struck(
        fault=fault.value,
        rank=rank,
        after=after,
        seconds=round(time.monotonic() - began, 2),
        verdict=result.verdict.value,
        message=result.findings[0].message if result.findings else "",
        processes=len(_running()),
        ports=len(ports & _listening(None)),
    )


@contextmanager
def _watched() -> Iterator[set[int]]:
    """The ports that processes started meanwhile listen on."""
    ports: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            with suppress(psutil.Error):
                for process in psutil.Process().children(recursive=True):
                    ports.update(_listening(process))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield ports
    finally:
        over.set()
        thread.join()


def _listening(process: psutil.Process | None) -> set[int]:
    with suppress(psutil.Error):
        found = psutil.net_connections("tcp") if process is None else process.net_connections("tcp")
        return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}
    return set()


def _running() -> list[str]:
    """Launchers and ranks of ours that run: they share the command line."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if f"elastic.py {tempfile.gettempdir()}" in line]


def main(_: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Strike a hundred times, the same ones every time; print the table, write JSON; exit 1 on a hang or a leak."""
    drawn = random.Random(0)
    rows: list[Struck] = [Struck(**row) for row in json.loads(out.read_text())] if out.exists() else []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        tempfile.tempdir = folder  # so that what is found running can only be ours
        for number in track(range(COUNT), description="faults", console=Console(stderr=True)):
            fault = list(Fault)[number % len(Fault)]
            rank, after = drawn.randrange(tp), drawn.randrange(FORWARDS)
            if number < len(rows):
                continue
            rows.append(strike(fault, rank=rank, after=after, tp=tp))
            out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
        tempfile.tempdir = None
    Console().print(_table(rows))
    return int(any(row.hung or row.processes or row.ports or row.verdict == "confirmed" for row in rows))


def _table(rows: list[Struck]) -> Table:
    table = Table("fault", "runs", "verdicts", "longest, s", "hangs", "processes", "ports", title="injected faults")
    for fault in [*Fault, "all"]:
        mine = [row for row in rows if fault in ("all", row.fault)]
        verdicts = ", ".join(f"{word} {count}" for word, count in Counter(row.verdict for row in mine).items())
        longest = max((row.seconds for row in mine), default=0.0)
        left = [sum(row.hung for row in mine), sum(row.processes for row in mine), sum(row.ports for row in mine)]
        table.add_row(str(fault), str(len(mine)), verdicts, f"{longest:.1f}", *map(str, left))
    return table
