"""Integer arithmetic that every package shares: units of time, and division that rounds up."""

PS_PER_S = 10**12

PS_PER_NS = 1000


def ceil_div(a: int, b: int) -> int:
    """Return ceil(a / b), for a >= 0 and b > 0."""
    return -(-a // b)
