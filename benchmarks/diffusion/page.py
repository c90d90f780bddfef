"""The outcome as docs/diffusers.md."""

from collections import Counter
from collections.abc import Sequence

import torch
import transformers

from benchmarks.diffusion.models import installed, transformer_models
from benchmarks.others.outcome import Outcome, Told, outcome
from benchmarks.zoo.measure import LAYERS
from benchmarks.zoo.rows import Row

_UNSET = "does not build from this config"


def page(rows: Sequence[Row]) -> str:
    """docs/diffusers.md."""
    versions = f"diffusers {installed()}, Transformers {transformers.__version__}, torch {_version()}"
    told = {row.name: outcome(row) for row in rows}
    counted = Counter(one.kind for one in told.values())
    unset = sum(_UNSET in one.reason for one in told.values())
    lines = [
        "# Models of diffusers",
        "",
        f"{len(rows)} of the {len(transformer_models())} transformer models of {versions}, without a wrapper: `plan suggest",
        "diffusers:FluxTransformer2DModel`. Each has the widths of its constructor's defaults (of a few, sizes chosen here), and",
        f"{LAYERS} layers of each stack. Written by `python -m benchmarks diffusers --page docs/diffusers.md`; do not edit by",
        "hand.",
        "",
        "A plan is suggested and proved at the smallest degree that it allows, and run at that degree on a small twin in",
        "float64. The inputs are found from the forward itself. *Sharded* is the share of the parameter bytes.",
        "",
        "| outcome | models |",
        "|---|---|",
        *(f"| {kind.value} | {counted[kind]} |" for kind in Outcome),
        f"| of those without a plan: the constructor has no default for sizes that it needs | {unset} |",
        "",
        "| model | sharded | outcome | inputs | reason |",
        "|---|---|---|---|---|",
        *(_line(row, told[row.name]) for row in rows),
        "",
    ]
    return "\n".join(lines)


def _version() -> str:
    return torch.__version__.partition("+")[0]


def _line(row: Row, told: Told) -> str:
    share = f"{row.mine.fraction:.3f}" if row.mine is not None and row.mine.fraction else "-"
    cells = [_class(row), share, told.kind.value, ", ".join(row.inputs) or "-", _cell(row, told.reason)]
    return f"| {' | '.join(cells)} |"


def _class(row: Row) -> str:
    return row.name.partition(" ")[0].rpartition(":")[2]


def _cell(row: Row, text: str) -> str:
    reference = row.name.partition(" ")[0]
    said = text.replace(f"{reference}: ", "").replace(reference, _class(row))
    short = said if len(said) <= 300 else said[:297] + "..."
    return " ".join(short.split()).replace("|", "\\|").replace("] [", "] \\[").replace("<", "&lt;")
