"""The versions of the libraries that a result was computed with; nothing about the machine."""

import json
import os
import platform

STARTED_FROM = "SHARDPROOF_STARTED_FROM"
"""Set where the command was handed over to this interpreter (`--python`): the versions of the one before, as JSON."""


def environment() -> dict[str, str]:
    """The versions of Python, torch, Transformers and shardproof. Nothing is imported for it."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def started_from() -> dict[str, str] | None:
    """The versions where the command was typed, if it was handed over to this interpreter; else None."""
    told = os.environ.get(STARTED_FROM)
    return json.loads(told) if told else None


_PACKAGES = ("torch", "transformers", "shardproof")


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # it reads mail to find a version: help needs neither

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed" if package != "shardproof" else "from source"
