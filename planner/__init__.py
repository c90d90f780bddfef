"""What plan? Inference of tensor- and pipeline-parallel plans from a model's computation.

Nothing here imports torch until it is needed, so `import planner` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.api import Suggestion, suggest

__all__ = ["Suggestion", "suggest"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("planner.api"), name)
    raise AttributeError(f"module 'planner' has no attribute {name!r}")
