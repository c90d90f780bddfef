"""Run it: the command line, torchrun, and the ranks. The only package that prints, exits or starts a process."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.api import confirm

__all__ = ["confirm"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("launch.api"), name)
    raise AttributeError(f"module 'launch' has no attribute {name!r}")
