"""Roofs of random convex curves: they pass through the products, and are convex and monotonous."""

from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from plans.roofs import is_below, roofs_of
from plans.schema import MeasuredRates, ProductRates, Together


@st.composite
def devices(draw: st.DrawFn) -> tuple[Together, list[tuple[int, int]]]:
    """Draw a device; with the work of a second of each of its products, whose time per byte is convex in operations."""
    time, rows, slope, points = Fraction(1), 1, Fraction(0), [(Fraction(1), 1)]
    for _ in range(draw(st.integers(1, 4))):
        step = draw(st.integers(1, 40))
        # steeper than before, and no steeper than in proportion to the rows
        slope += (time / rows - slope) * draw(st.fractions(Fraction(1, 10), 1, max_denominator=10))
        time, rows = time + slope * step, rows + step
        points.append((time, rows))
    unit = 10**6
    for time, _ in points:
        unit *= time.numerator
    work = [(int(unit / time), int(rows * unit / time)) for time, rows in points]
    products = tuple(ProductRates(bandwidth_bytes_per_s=nbytes, flops_per_s=flops) for nbytes, flops in work)
    rates = Together(
        devices=1, bandwidth_bytes_per_s=work[0][0], flops_per_s=work[-1][1], overhead_ns=0,
        measured=MeasuredRates(products=products, row_ns=0, tree_ns=0),
    )  # fmt: skip
    return rates, work


def seconds(rates: Together, nbytes: int, flops: int) -> Fraction:
    return max(Fraction(nbytes * p + flops * q, divisor) for p, q, divisor in roofs_of(rates))


@given(devices(), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_work_takes_its_time_between_products(
    drawn: tuple[Together, list[tuple[int, int]]], bytes_1: int, flops_1: int, bytes_2: int, flops_2: int
) -> None:
    rates, work = drawn
    assert rates.measured is not None
    assert all(is_below(roofs_of(rates), own) for own in rates.measured.products)
    for nbytes, flops in work:
        assert seconds(rates, nbytes, flops) == 1
    for one, other in pairwise(work):
        assert seconds(rates, one[0] + other[0], one[1] + other[1]) == 2
    apart = seconds(rates, bytes_1, flops_1) + seconds(rates, bytes_2, flops_2)
    assert apart >= seconds(rates, bytes_1 + bytes_2, flops_1 + flops_2), "work that is divided takes no less"
    assert seconds(rates, bytes_1 + 1, flops_1 + 1) >= seconds(rates, bytes_1, flops_1)
