"""The line of modeling code that called an op: a file relative to its package or folder, and a line number."""

import inspect
import sys
import traceback
from functools import cache
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME

from shardproof.planner.ir.findings import Source

_TORCH = str(Path(torch.__file__).parent)
_LAYERS = f"{_TORCH}/nn/modules/"
_OURS = f"{Path(__file__).parents[2]}/"
_CALLER = str(Path(__file__).parents[1] / "inputs" / "run_modes.py")
"""The file of ours that calls a model's forward."""


class SourceFinder:
    """Finds the modeling line of the running op: the innermost frame in the file of the running module's class."""

    def __init__(self, model: nn.Module) -> None:
        self.file_of: dict[type, str | None] = {}
        self.own = _file_of(type(model))

    def here(self, module: nn.Module | None) -> Source | None:
        """The line that runs now in the forward of `module`."""
        wanted = self._file(type(module)) if module is not None else self.own
        frame: FrameType | None = sys._getframe(1)
        fallback: Source | None = None
        layer: Source | None = None  # of torch's own, where no other code calls it
        while frame is not None:
            name = frame.f_code.co_filename
            if name == wanted or (name == self.own and module is None):
                return Source(relative(name), frame.f_lineno)
            if name == _CALLER:  # what lies further out called us, not the model
                break
            if fallback is None and not name.startswith((_TORCH, _OURS)):
                fallback = Source(relative(name), frame.f_lineno)
            if layer is None and name.startswith(_LAYERS) and not name.endswith("/module.py"):
                layer = Source(relative(name), frame.f_lineno)
            frame = frame.f_back
        return fallback or layer

    def of_traceback(self, error: BaseException) -> Source | None:
        """The innermost modeling line of an error."""
        return line_of(error, self.own)

    def _file(self, kind: type) -> str | None:
        if kind not in self.file_of:
            name = _file_of(kind)
            self.file_of[kind] = None if name is not None and name.startswith(_TORCH) else name
        return self.file_of[kind]


def line_of(error: BaseException, own: str | None) -> Source | None:
    """The innermost line of an error's traceback in the folder of the file `own`, else in any modeling code."""
    entries = [
        entry
        for entry in reversed(traceback.extract_tb(error.__traceback__))
        if not entry.filename.startswith((_TORCH, _OURS)) and entry.lineno is not None
    ]
    beside = [entry for entry in entries if own is not None and Path(entry.filename).parent == Path(own).parent]
    found = next(iter(beside or entries), None)
    return Source(relative(found.filename), found.lineno or 0) if found is not None else None


def built_at(error: BaseException, kind: type) -> str:
    """A clause that names the innermost line of an error's traceback in the code of `kind`; empty if there is none."""
    line = line_of(error, _file_of(kind))
    return f" at {Path(line.file).name}:{line.line}" if line is not None else ""


def _file_of(kind: type) -> str | None:
    try:
        return inspect.getfile(kind)
    except (TypeError, OSError):
        return None


@cache
def relative(name: str) -> str:
    """A file name without machine-specific parts: from its package on, or the bare name, as for code of a checkpoint."""
    path = Path(name)
    if TRANSFORMERS_DYNAMIC_MODULE_NAME in path.parts:  # Transformers' copy of a checkpoint's code
        return path.name
    for parent in path.parents:
        if not (parent / "__init__.py").exists():
            return str(path.relative_to(parent))
    return path.name
