"""The versions of the libraries that a result was computed with; nothing about the machine."""

import platform


def environment() -> dict[str, str]:
    """The versions of Python, torch, Transformers and shardproof. Nothing is imported for it."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


_PACKAGES = ("torch", "transformers", "shardproof")


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # it reads mail to find a version: help needs neither

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed" if package != "shardproof" else "from source"
