"""Bytes, durations and rates as text for people; every command formats figures here."""


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
