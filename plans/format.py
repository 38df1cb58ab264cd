"""Bytes and durations as text for people; every command formats figures here."""


def format_ns(duration_ns: int) -> str:
    """``1.5 ms``, ``12.0 us``."""
    if duration_ns >= 10**6:
        return f"{duration_ns / 10**6:.1f} ms"
    return f"{duration_ns / 1000:.1f} us"


def format_bytes(nbytes: int) -> str:
    """``1.5 GiB``, ``12.0 MiB``, ``0.1 MiB``; exact where it is less than a tenth of a MiB."""
    if nbytes >= 1 << 30:
        return f"{nbytes / (1 << 30):.1f} GiB"
    if nbytes * 20 >= 1 << 20:
        return f"{nbytes / (1 << 20):.1f} MiB"
    return f"{nbytes} B"
