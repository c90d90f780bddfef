"""The outcome as docs/others.md."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
import transformers

from benchmarks.others.outcome import Outcome, outcome
from benchmarks.types import other_types
from benchmarks.zoo.rows import Row

_MEDIA = ("pixel", "image", "video", "audio", "input_features", "input_values", "bbox", "spectrogram")


def page(rows: Sequence[Row]) -> str:
    """docs/others.md."""
    versions = f"Transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}"
    counted = Counter(outcome(row).kind for row in rows)
    media = [row for row in rows if _seen(row)]
    lines = [
        "# The other types",
        "",
        f"{len(rows)} of the {len(other_types())} model types of {versions} that are no causal language models: vision, video,",
        "audio, tables, layouts, time series, proteins, encoders, encoder-decoders, dual towers, detection, vision-language.",
        "From their default configs at full size. Written by `python -m benchmarks others --page docs/others.md`; do not edit by",
        "hand.",
        "",
        "A plan is suggested and proved at the smallest degree that it allows, and run at that degree on a small twin in",
        "float64. *Inputs* are what the forward was given: a type whose inputs are tokens alone was judged on its text path",
        "alone.",
        "",
        "| outcome | types |",
        "|---|---|",
        *(f"| {kind.value} | {counted[kind]} |" for kind in Outcome),
        f"| traced with images, video, audio or layouts | {len(media)} |",
        f"| of these confirmed by a run | {sum(outcome(row).kind is Outcome.CONFIRMED for row in media)} |",
        "",
        "| type | sharded | outcome | inputs | reason, or what was left out |",
        "|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
    ]
    return "\n".join(lines)


def _seen(row: Row) -> bool:
    return any(name.startswith(_MEDIA) or name in _MEDIA for name in row.inputs)


def _line(row: Row) -> str:
    told = outcome(row)
    share = f"{row.mine.fraction:.3f}" if row.mine is not None and row.mine.fraction else "-"
    why = "; ".join(filter(None, (_left(row.notes), told.reason)))
    cells = [row.name, share, told.kind.value, ", ".join(row.inputs) or "-", _cell(why)]
    return f"| {' | '.join(cells)} |"


def _left(notes: Iterable[str]) -> str:
    return next((note for note in notes if note.startswith("traced on fewer inputs")), "")


def _cell(text: str) -> str:
    short = text if len(text) <= 300 else text[:297] + "..."
    return " ".join(short.split()).replace("|", "\\|").replace("] [", "] \\[").replace("<", "&lt;")
