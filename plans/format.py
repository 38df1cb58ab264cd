"""Bytes, durations, rates and names of files as text for people; every command formats figures here."""

MOST_QUOTED = 80
"""Most characters of a quotation in a message."""
MAX_NAME = 1024
"""Most characters of a name that a message shows whole."""


def format_ns(duration_ns: int) -> str:
    """Return a time of a step: ``1.5 ms``, ``12.0 us``."""
    if duration_ns >= 10**6:
        return f"{duration_ns / 10**6:.1f} ms"
    return f"{duration_ns / 1000:.1f} us"


def format_s(duration_s: float) -> str:
    """Return a time that a person waits: ``15.1 s``."""
    return f"{duration_s:.1f} s"


def format_bytes(nbytes: int) -> str:
    """Return ``1.5 GiB``, ``12.0 MiB``, ``0.1 MiB``; exact where it is less than a twentieth of a MiB."""
    if nbytes >= 1 << 30:
        return f"{nbytes / (1 << 30):.1f} GiB"
    if nbytes * 20 >= 1 << 20:
        return f"{nbytes / (1 << 20):.1f} MiB"
    return f"{nbytes} B"


def format_bandwidth(bytes_per_s: int) -> str:
    """Return ``3350.0 GB/s``."""
    return f"{bytes_per_s / 10**9:.1f} GB/s"


def format_flops(flops_per_s: int) -> str:
    """Return ``989.00 TFLOP/s``."""
    return f"{flops_per_s / 10**12:.2f} TFLOP/s"


def quote(value: object) -> str:
    """Return a value from outside as messages quote it: escaped, and its beginning alone where it is long."""
    if isinstance(value, str):
        return repr(value) if len(value) <= MOST_QUOTED else f"{value[:MOST_QUOTED]!r}... of {len(value)} characters"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= MOST_QUOTED else f"{text[: MOST_QUOTED - 3]}..."


def shown(name: str) -> str:
    """Return a name from outside as a path in a message shows it: escaped and cut where it is empty, unprintable or too
    long."""
    return name if name.isprintable() and 0 < len(name) <= MAX_NAME else f"{name[:40]!r} of {len(name)} characters"
