"""Families in real vLLM on CPU with our plan and with the one they ship: `SHARDPROOF_VLLM_PYTHON` names its interpreter.

A chunk of families is planned, proved and written to disk, then served in one session of the engine.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from benchmarks.engines.families import CUSTOM, FIRST, family
from benchmarks.engines.page import page
from benchmarks.engines.planted import planted, planted_family
from benchmarks.engines.rows import LAYOUTS, Answer, Row, key, read_rows, write_row
from benchmarks.types import causal_types
from shardproof import ShardproofError, check
from shardproof.launch.clients.checkpoint import servable, write_checkpoint
from shardproof.launch.clients.confirm import overrides_of
from shardproof.launch.clients.other_python import VLLM_PYTHON
from shardproof.launch.clients.vllm_engine import Served, ServedCheckpoint, VllmEngine, difference
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.findings import Severity
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.tracing.programs import on_meta
from shardproof.verify.clients.compile import compile_for
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.vllm.dialect import SERVED_ON_CPU

CHUNK = 6
TIMEOUT = 240.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A family that can be served: its row, its model on the CPU, its plans, its cases."""

    row: Row
    model: PreTrainedModel
    cases: tuple[tuple[str, str, ServedCheckpoint], ...]
    """Plan, layout, case."""


def main(
    types: tuple[str, ...],
    out: Path,
    *,
    plans: tuple[str, ...] = ("ours", "shipped"),
    seconds: float = 0.0,
    redo: bool = False,
    page_at: Path | None = None,
) -> int:
    """A row a family, written after each; what is in the file already is not run again, but for plans that it lacks."""
    began = time.monotonic()
    rows = read_rows(out)
    if types == ("planted",):
        types = tuple(planted())
    names = types or (*CUSTOM, *FIRST, *(name for name in causal_types() if name not in FIRST))
    left = [name for name in dict.fromkeys(names) if redo or not _done(rows.get(name), plans)]
    for chunk in (left[start : start + CHUNK] for start in range(0, len(left), CHUNK)):
        if seconds and time.monotonic() - began > seconds:
            break
        for row in _served(chunk, rows, plans, redo):
            write_row(out, row)
            print(_line(row), flush=True)
    found = read_rows(out)
    if page_at is not None:
        page_at.write_text(page(list(found.values())))
    wrong = [sentence for row in found.values() for sentence in row.disagreements()]
    print("\n".join(wrong))
    return int(bool(wrong))


def _done(row: Row | None, plans: tuple[str, ...]) -> bool:
    return row is not None and (
        bool(row.reason or row.unplanned) or not row.alone.right or all(plan in row.answers for plan in plans)
    )


def _served(names: list[str], known: dict[str, Row], plans: tuple[str, ...], redo: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        wanted: list[Wanted] = []
        for name in names:
            row = Row(name) if redo or name not in known else known[name]
            try:
                wanted.append(_wanted(row, Path(folder) / name.replace(": ", "-").replace(" ", "_"), plans))
            except Exception as error:  # a family that cannot be planned is a row too
                row.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                yield row
        with VllmEngine(os.environ[VLLM_PYTHON], timeout=TIMEOUT) as engine:
            answers = engine.run([case for one in wanted for _, _, case in one.cases])
            for one in wanted:
                for plan, layout, _ in one.cases:
                    _fill(one, plan, layout, next(answers))
                yield one.row


def _wanted(row: Row, folder: Path, plans: tuple[str, ...]) -> Wanted:
    """The twin of a family on disk, and its cases; every plan is proved in the dialect first."""
    made = planted_family if row.name in planted() else family
    small = servable(made(row.name, folder / "code"), tp=2, pp=2)
    model = write_checkpoint(small, folder)
    dialect = SERVED_ON_CPU
    carried = carried_plan(small, on_meta(small))
    row.carried = bool(carried.tp)
    row.checked = _checked(small)
    found: dict[str, Plan] = {}
    if "ours" in plans:
        try:
            found["ours"] = compile_for(dialect, small, suggest(small).plan).plan
        except ShardproofError as error:  # a fault may leave no plan: the engine on one rank is asked all the same
            row.unplanned = " ".join(str(error).split())[:200]
    if "shipped" in plans:
        found["shipped"] = carried
    cases = [("", "alone", ServedCheckpoint(str(folder)))]
    for plan, written in found.items():
        row.answers[plan] = {}
        for tp, pp in LAYOUTS:
            proof = prove_for(dialect, small, written, tp=tp, pp=pp)
            codes = sorted({f.code for f in proof.findings if f.severity is not Severity.WARNING})
            row.answers[plan][key(tp, pp)] = Answer(proof.verdict.value, codes)
            given = overrides_of(written) if plan == "ours" else {}
            cases.append((plan, key(tp, pp), ServedCheckpoint(str(folder), tp, pp, given)))
    return Wanted(row, model, tuple(cases))


def _checked(small: LoadedModel) -> list[str]:
    """The findings of the model itself: of no plan."""
    report = check(small, Plan(), clients=(f"vllm@{SERVED_ON_CPU.version}",))
    return [f"{f.code} {f.message}" for f in report.findings if f.severity is Severity.ERROR]


def _fill(wanted: Wanted, plan: str, layout: str, served: Served) -> None:
    answer = wanted.row.answers[plan][layout] if plan else wanted.row.alone
    answer.difference = difference(wanted.model, served)
    answer.error = " ".join(served.error.split())[:300]
    wanted.row.versions = dict(served.versions) or wanted.row.versions
    whole = sum(parameter.numel() * parameter.element_size() for parameter in wanted.model.parameters())
    answer.held = served.held / whole if served.held else None


def _line(row: Row) -> str:
    if row.reason:
        return f"{row.name:<16} {row.reason}"
    words = [f"alone {_word(row.alone)}"]
    words += [
        f"{plan} {layout} {_word(a)} ({a.verdict})"
        for plan, given in row.answers.items()
        for layout, a in given.items()
    ]
    return f"{row.name:<16} {'; '.join(words)}"


def _word(answer: Answer) -> str:
    return answer.error[:80] if answer.difference is None else f"{answer.difference:.1e}"
