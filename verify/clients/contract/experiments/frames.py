"""Lines of modeling code, found from the frames of a running model."""

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
import transformers

from shardproof.planner.ir.findings import Source
from shardproof.planner.loading.source_lines import relative

_LIBRARIES = (str(Path(torch.__file__).parent), f"{Path(__file__).parents[4]}/")
_TRANSFORMERS = str(Path(transformers.__file__).parent)
_MODELS = f"{_TRANSFORMERS}/models/"
_STANDARD = str(Path(traceback.__file__).parent)


def is_modeling(file: str) -> bool:
    """Whether a file belongs to a model, and to no library: Transformers' models do, its own machinery does not."""
    if file.startswith(_TRANSFORMERS):
        return file.startswith(_MODELS) and "/auto/" not in file
    packages = "site-packages" in file
    return not (file.startswith((*_LIBRARIES, "<")) or (file.startswith(_STANDARD) and not packages))


def frames() -> Iterator[FrameType]:
    """The frames of the caller and of all above it, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop


def calling_line() -> Source | None:
    """The innermost line of modeling code that runs now; None where none does."""
    return next((line_in(frame) for frame in frames() if is_modeling(frame.f_code.co_filename)), None)


def line_in(frame: FrameType) -> Source:
    """The line that runs now in a frame."""
    return Source(relative(frame.f_code.co_filename), frame.f_lineno)


def raising_line(error: BaseException) -> Source | None:
    """The innermost line of modeling code in the traceback of an error, or of what caused it; None where there is none."""
    one: BaseException | None = error
    while one is not None:
        entries = traceback.extract_tb(one.__traceback__)
        found = next((entry for entry in reversed(entries) if is_modeling(entry.filename)), None)
        if found is not None:
            return Source(relative(found.filename), found.lineno or 0)
        one = one.__cause__
    return None
