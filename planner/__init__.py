"""What plan? Inference of tensor- and pipeline-parallel plans from a model's computation.

Nothing here imports torch until it is needed, so `import planner` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.api import Suggestion, suggest
    from planner.frontend.load import Loaded, LoadError, load
    from planner.ir.plan import Plan

__all__ = ["LoadError", "Loaded", "Plan", "Suggestion", "load", "suggest"]

_HOMES = {
    "suggest": "planner.api",
    "Suggestion": "planner.api",
    "load": "planner.frontend.load",
    "Loaded": "planner.frontend.load",
    "LoadError": "planner.frontend.load",
    "Plan": "planner.ir.plan",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'planner' has no attribute {name!r}")
