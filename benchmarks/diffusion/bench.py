"""`python -m benchmarks diffusers`: every transformer model of the installed diffusers, in a random order, resumable."""

import sys
from pathlib import Path

from benchmarks.diffusion.models import installed, transformer_models
from benchmarks.diffusion.page import page
from benchmarks.others import bench as others

LIMITS = {"proof": 240.0, "run": 240.0}
"""Seconds for one model at one level: their default configs have up to 60 layers, which a proof reads in three modes."""


def main(models: tuple[str, ...], out: Path, *, asked: others.Asked, page_at: Path | None) -> int:
    """Measure what is missing and print the counts; exit 1 where the run refuted what was proved, or where we crashed.

    `models` are words: a model whose reference contains one is measured; without words, all are.
    """
    if not installed():
        print("diffusers is not installed: pip install diffusers", file=sys.stderr)
        return 2
    wanted = tuple(name for name in transformer_models() if not models or any(word in name for word in models))
    return others.main(wanted, out, asked=asked, page_at=page_at, page_of=page, limits=LIMITS)
