"""Does every type's twin run the program of the model: the same ops in the same order in every kind of module?

A kind of module is its path with numbers as wildcards. How many layers there are is the one thing that a twin may change; what
belongs to a twin is looked at besides: no dropout, no neutral multiplier, a window shorter than its input.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.progress import track

from benchmarks.types import causal_types
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.build import build
from shardproof.planner.loading.configs.field_roles import role_of
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.trace import trace
from shardproof.planner.twins.sizes import LENGTH, numbers_beside_sizes
from shardproof.planner.twins.small_configs import fields_of
from shardproof.planner.twins.twin import TwinError, twin

Program = frozenset[tuple[str, tuple[str, ...]]]


def program(loaded: LoadedModel) -> Program:
    """Every kind of module with the ops that it runs by itself, in order; repeats apart."""
    ran: dict[str, list[str]] = {}
    for op in trace(build(loaded)).ops:
        if op.target != "repeat":
            ran.setdefault(op.module, []).append(op.target)
    return frozenset((generic(module), tuple(ops)) for module, ops in ran.items())


def missing(loaded: LoadedModel) -> Iterator[str]:
    """What belongs to a twin and is not in this one."""
    fields = fields_of(loaded.config)
    yield from (
        f"{name} = {fields[name]}"
        for name, want in numbers_beside_sizes(fields, scaled=True).items()
        if fields[name] != want
    )
    for name, value in fields.items():
        if role_of(name) == "window" and type(value) is int and value >= LENGTH:
            yield f"{name} = {value}"


def judged(name: str, *, tp: int) -> dict[str, object]:
    """One type: modules whose ops differ between the twin and the model, and what the twin lacks."""
    began = monotonic()
    try:
        loaded = load(name)
        small = twin(loaded, tp=tp)
        mine, real = program(small), program(loaded)
    except (LoadError, TraceError, TwinError, ValueError) as error:
        return {"error": " ".join(str(error).split())[:200]}
    differing = sorted({module for module, _ in mine ^ real})
    return {"differ": differing, "lacks": list(missing(small)), "seconds": round(monotonic() - began, 1)}


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Judge, print those that differ, write JSON; exit 1 where any does."""
    rows: dict[str, dict[str, object]] = json.loads(out.read_text()) if out.exists() else {}
    for name in track(types or causal_types(), description="twins", console=Console(stderr=True)):
        if name not in rows:
            rows[name] = judged(name, tp=tp)
            out.write_text(json.dumps(rows, indent=1))
    console = Console()
    for name, row in rows.items():
        if row.get("error") or row.get("differ") or row.get("lacks"):
            console.print(f"{name}: {row}", markup=False)
    same = [row for row in rows.values() if row.get("differ") == []]
    console.print(f"{len(same)} of {len(rows)} twins run the program of their model")
    return int(any(row.get("differ") for row in rows.values()))
