"""Roofs of a device: linear bounds of the time of work that reads so many bytes and does so many operations.

The time is the largest of them. Two roofs are the reading alone and the arithmetic alone; between two neighbouring
products, each measured by the bytes and operations of a second, lies the roof that gives both a second:

    time = (bytes * (f' - f) + operations * (b - b')) / (b * f' - b' * f)

Bytes of a second fall with the rows of a product and operations rise, so that no factor is negative. The products lie
on a convex curve, so that the roof of two is no higher than the time of another: work that is divided takes no less in
all than it took whole, as lower bounds of the solver have it.
"""

from collections.abc import Sequence
from itertools import pairwise

from plans.schema import Device, ProductRates, Together

Roof = tuple[int, int, int]
"""Factors of bytes and of operations, and the divisor: seconds are (bytes * p + operations * q) / divisor."""


def roofs_of(rates: Device | Together) -> tuple[Roof, ...]:
    """Return the roofs of a device, in rates of a datasheet."""
    between = (roof_of(one, other) for one, other in pairwise(rates.measured.products if rates.measured else ()))
    return (1, 0, rates.bandwidth_bytes_per_s), *between, (0, 1, rates.flops_per_s)


def roof_of(one: ProductRates, other: ProductRates) -> Roof:
    """Return the roof between two products, the second of which has more operations to a byte."""
    (bytes_1, flops_1), (bytes_2, flops_2) = ((own.bandwidth_bytes_per_s, own.flops_per_s) for own in (one, other))
    return flops_2 - flops_1, bytes_1 - bytes_2, bytes_1 * flops_2 - bytes_2 * flops_1


def is_below(roofs: Sequence[Roof], own: ProductRates) -> bool:
    """Return whether no roof is above the second that a product takes."""
    return all(own.bandwidth_bytes_per_s * p + own.flops_per_s * q <= divisor for p, q, divisor in roofs)
