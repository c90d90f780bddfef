"""`python -m benchmarks packages --page docs/packages.md`: models of published packages that are installed, resumable."""

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from benchmarks.others import bench as others
from benchmarks.others.outcome import Outcome, Told, outcome
from benchmarks.packages.models import BUILT, references
from benchmarks.zoo.rows import Row

LIMITS = {"proof": 150.0, "run": 150.0}
"""Seconds for one model at one level."""


def main(models: tuple[str, ...], out: Path, *, asked: others.Asked, page_at: Path | None) -> int:
    """Measure what is missing and print the counts; exit 1 where the run refuted what was proved, or where we crashed.

    `models` are words: a model whose reference contains one is measured; without words, all are.
    """
    wanted = tuple(name for name in references() if not models or any(word in name for word in models))
    return others.main(wanted, out, asked=asked, page_at=page_at, page_of=page, limits=LIMITS)


def page(rows: Sequence[Row]) -> str:
    """docs/packages.md."""
    told = {row.name: outcome(row) for row in rows}
    counted = Counter(one.kind for one in told.values())
    lines = [
        "# Models of published packages",
        "",
        f"{len(rows)} models of packages that nobody here wrote, as they are: `plan suggest vit_pytorch:ViT --set dim=64 ...`.",
        f"Transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}; {_versions(rows)}.",
        "The sizes are small and chosen here (`benchmarks/packages/`); inputs are found from the forward. A plan is",
        "suggested, proved at the smallest degree that it allows, and run at that degree on a small twin. *Sharded* is the",
        "share of the parameter bytes. Written by `python -m benchmarks packages --page docs/packages.md`; do not edit by hand.",
        "",
        "| outcome | models |",
        "|---|---|",
        *(f"| {kind.value} | {counted[kind]} |" for kind in Outcome),
        "",
        "| model | sharded | outcome | inputs | reason |",
        "|---|---|---|---|---|",
        *(_line(row, told[row.name]) for row in rows),
        "",
    ]
    return "\n".join(lines)


def _versions(rows: Sequence[Row]) -> str:
    """The versions of the packages, as far as they are installed."""
    distributions = packages_distributions()
    modules = sorted({_reference(row).partition(":")[0].partition(".")[0] for row in rows} - {BUILT.partition(".")[0]})
    named = {one for module in modules if find_spec(module) for one in distributions.get(module, ())}
    return ", ".join(f"{one} {version(one)}" for one in sorted(named)) or "no versions known"


def _reference(row: Row) -> str:
    return row.name.partition(" ")[0]


def _line(row: Row, told: Told) -> str:
    share = f"{row.mine.fraction:.3f}" if row.mine is not None and row.mine.fraction else "-"
    name = _reference(row).removeprefix(f"{BUILT}:")
    said = " ".join(told.reason.replace(_reference(row), name).split())
    short = said if len(said) <= 240 else said[:237] + "..."
    cells = [name, share, told.kind.value, ", ".join(row.inputs) or "-", short]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |"
