"""Integer arithmetic that every package shares: units of time, division that rounds up, rounds of a tree."""

PS_PER_S = 10**12

PS_PER_NS = 1000


def ceil_div(a: int, b: int) -> int:
    """Return ceil(a / b), for a >= 0 and b > 0."""
    return -(-a // b)


def rounds(members: int) -> int:
    """Return the rounds of a tree in which one of so many tells all others: the logarithm to base 2, rounded up."""
    return max(0, members - 1).bit_length()
