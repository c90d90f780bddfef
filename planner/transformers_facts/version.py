"""Which versions of Transformers were tested, and which one is installed. Nothing is imported for it."""

import re
from collections.abc import Mapping

from shardproof.planner.ir.errors import ShardproofError

FLOOR = (5, 16)
"""The oldest minor version that works: older ones lack functions that this package calls."""
NEWEST = (5, 24)
"""The newest minor version that the tests ran with."""


STYLES_SINCE: Mapping[str, tuple[int, int]] = {
    "ep_dispatch_experts": (5, 19),
    "embedding_colwise": (5, 21),
    "replicate": (5, 21),
    "local_params": (5, 23),
}
"""The styles that the floor lacks, and the minor version that brought each (`distributed/tensor_parallel.py` of each
version). For names without an import; `styles.registered` reads the library, and a test compares the two.
"""


class VersionError(ShardproofError, RuntimeError):
    """Transformers is older than the oldest version that works."""


def installed() -> str:
    """The version of the installed Transformers; empty if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # it reads mail to find a version: help needs neither

    try:
        return version("transformers")
    except PackageNotFoundError:
        return ""


def minor_text() -> str:
    """The installed minor version, such as `5.24`; the newest tested one if Transformers is not installed."""
    return _text(_minor(installed()) or NEWEST)


def is_least(minor: tuple[int, int]) -> bool:
    """Whether the installed version is this minor version or a later one."""
    return minor <= (_minor(installed()) or NEWEST)


def style_exists(style: str) -> bool:
    """Whether the installed version has a style that the newest tested one has."""
    return is_least(STYLES_SINCE.get(style, FLOOR))


def is_tested(found: str) -> bool:
    """Whether the tests ran with this minor version; not with a development version of a minor version either."""
    return FLOOR <= _minor(found) <= NEWEST and ".dev" not in found


def untested_warning() -> str:
    """One sentence if the installed version is above the newest tested one; empty for a tested version.

    Raises:
        VersionError: the version is below the floor.
    """
    found = installed()
    if not found or is_tested(found):
        return ""
    if _minor(found) < FLOOR:
        raise VersionError(
            f"Transformers {found} is installed, and {_text(FLOOR)} is the oldest that works: "
            f'`pip install "transformers>={_text(FLOOR)}"`.'
        )
    return (
        f"Transformers {found} is newer than {_text(NEWEST)}, the newest version that was tested; "
        "what it does with a plan may differ from what is said here."
    )


def _minor(found: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", found)[:2])


def _text(minor: tuple[int, ...]) -> str:
    return ".".join(map(str, minor))
