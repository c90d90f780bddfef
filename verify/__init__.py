"""Is it right? Proof by placements, and the comparison of real ranks with the single-device model.

Nothing here imports torch until it is needed, and nothing here knows how a plan was inferred.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verify.clients import check
    from verify.report import LevelResult, Report
    from verify.static import prove

__all__ = ["prove", "check", "LevelResult", "Report"]

_HOMES = {
    "prove": "verify.static",
    "check": "verify.clients",
    "LevelResult": "verify.report",
    "Report": "verify.report",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'verify' has no attribute {name!r}")
