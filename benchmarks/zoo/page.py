"""The outcome as a page and as a table of totals."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median

import torch
import transformers
from rich.table import Table

from benchmarks.types import causal_types
from benchmarks.zoo.rows import Judged, Row, disagreements
from shardproof.planner.ir.degrees import spans

_COUNTED: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("types", lambda row: bool(row.name)),
    ("build", lambda row: row.stage not in ("load", "build")),
    ("traced", lambda row: row.ops > 0),
    ("a plan suggested", lambda row: row.mine is not None and row.mine.fraction > 0),
    ("suggestion proved at every degree asked", lambda row: row.mine is not None and row.mine.right("proof")),
    ("suggestion confirmed by the run at every degree asked", lambda row: _is(row.mine, "run")),
    (
        "suggestion proved and confirmed at every degree asked",
        lambda row: _is(row.mine, "proof") and _is(row.mine, "run"),
    ),
    ("no plan, with the reason", lambda row: not (row.mine and row.mine.fraction > 0)),
    ("suggestion proved and refuted by the run (wrong)", lambda row: _refuted(row.mine)),
    ("type carries a plan of its own", lambda row: row.upstream is not None),
    ("own plan proved", lambda row: _is(row.upstream, "proof")),
    (
        "own plan refuted by the proof",
        lambda row: row.upstream is not None and "refuted" in row.upstream.proof.values(),
    ),
    ("suggestion shards less than a proved own plan", lambda row: _less(row)),
)


def _is(judged: Judged | None, level: str) -> bool:
    return judged is not None and judged.right(level)


def _refuted(judged: Judged | None) -> bool:
    return judged is not None and "refuted" in judged.run.values() and "proved" in judged.proof.values()


def _less(row: Row) -> bool:
    mine = row.mine.fraction if row.mine else 0.0
    return row.upstream is not None and row.upstream.right("proof") and mine < row.upstream.fraction - 1e-6


def counts(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """The totals: what is counted, and the number."""
    rows = list(rows)
    found = [(label, str(sum(test(row) for row in rows))) for label, test in _COUNTED]
    found.append(("proof and run disagree", str(len(disagreements(rows)))))
    found += _separation([judged for row in rows for judged in (row.mine, row.upstream) if judged])
    fractions = [row.mine.fraction for row in rows if row.mine and row.mine.fraction > 0]
    theirs = [row.upstream.fraction for row in rows if row.upstream]
    for whose, shares in (("suggestion", fractions), ("own plan", theirs)):
        if shares:
            found.append((f"{whose}: median share of the parameter bytes that is sharded", f"{median(shares):.4f}"))
    for step in ("trace", "suggest", "prove", "run 2"):
        times = [row.seconds[step] for row in rows if step in row.seconds]
        if times:
            found.append((f"{step}: median / slowest, seconds", f"{median(times):.2f} / {max(times):.2f}"))
    return found


def _separation(plans: Iterable[Judged]) -> list[tuple[str, str]]:
    """The largest error of a confirmed plan, and the smallest of the largest errors of a refuted one that ran to the end."""
    errors: dict[str, list[float]] = {"confirmed": [], "refuted": []}
    for judged in plans:
        for degree, error in judged.errors.items():
            errors.setdefault(judged.run[degree], []).append(error)
    found = []
    if right := errors["confirmed"]:
        found.append(("run: largest relative error of a confirmed plan", f"{max(right):.1e} ({len(right)} runs)"))
    if wrong := errors["refuted"]:
        found.append(("run: smallest relative error of a refuted plan", f"{min(wrong):.1e} ({len(wrong)} runs)"))
    return found


def totals(rows: Iterable[Row]) -> Table:
    """The totals for the terminal."""
    table = Table("measure", "number", title="zoo")
    for label, number in counts(rows):
        table.add_row(label, number)
    return table


def page(rows: Sequence[Row]) -> str:
    """docs/zoo.md."""
    versions = f"Transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}"
    lines = [
        "# The zoo",
        "",
        f"{len(rows)} of the {len(causal_types())} causal language model types of {versions}, from their default",
        "configs at full size. Written by",
        "`python -m benchmarks zoo --page docs/zoo.md`; do not edit by hand.",
        "",
        "*Sharded* is the share of parameter bytes that a plan splits. Verdicts are those of the proof (full size) and of the",
        "run (ranks on a small twin in float64: weights, hidden states, logits, masks, cached decoding, generation, loss and",
        "gradients compared) at the degrees shown. Seconds are of processor time on one thread, without imports; those of",
        "*run 2* are of the clock, for everything compared at degree 2, the single-device model included.",
        "",
        "| measure | number |",
        "|---|---|",
        *(f"| {label} | {number} |" for label, number in counts(rows)),
        "",
        "| type | degrees | suggested: sharded | proof | run | its own: sharded | proof | run | ops | suggest | prove | run 2 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        "## Without a plan, or not judged",
        "",
        "| type | stopped at | reason |",
        "|---|---|---|",
        *(f"| {row.name} | {row.stage} | {_cell(row.reason)} |" for row in rows if row.stage != "done"),
        "",
        "## Findings",
        "",
        "| type | plan | level, degree | finding |",
        "|---|---|---|---|",
        *_findings(rows),
        "",
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    cells = [row.name, spans(tuple(d for d in row.degrees if 1 < d <= 64)) or "-"]
    for judged in (row.mine, row.upstream):
        cells += [f"{judged.fraction:.3f}", _verdicts(judged.proof), _verdicts(judged.run)] if judged else ["-"] * 3
    cells += [
        str(row.ops or "-"),
        *(f"{row.seconds[s]:.2f}" if s in row.seconds else "-" for s in ("suggest", "prove", "run 2")),
    ]
    return f"| {' | '.join(cells)} |"


def _verdicts(verdicts: dict[str, str]) -> str:
    """`proved (2, 4)`, or each degree by itself where they differ."""
    said = dict.fromkeys(verdicts.values())
    parts = [f"{word} ({', '.join(d for d, v in verdicts.items() if v == word)})" for word in said]
    return "; ".join(parts) or "-"


def _findings(rows: Iterable[Row]) -> list[str]:
    return [
        f"| {row.name} | {whose} | {where} | {_cell(text)} |"
        for row in rows
        for whose, judged in (("suggested", row.mine), ("its own", row.upstream))
        for where, text in (judged.findings.items() if judged else ())
    ]


def _cell(text: str) -> str:
    short = text if len(text) <= 300 else text[:297] + "..."
    return short.replace("|", "\\|").replace("] [", "] \\[")  # not a link
