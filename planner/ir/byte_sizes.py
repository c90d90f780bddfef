"""Sizes in bytes, written for a reader."""

_UNITS = ("B", "KiB", "MiB", "GiB")


def format_bytes(count: float) -> str:
    """Bytes in the largest binary unit in which they are at least one, up to TiB: `1.5 GiB`."""
    for unit in _UNITS:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
