"""Parts of a datasheet's rates that are reached, as (numerator, denominator), by which predicted times divide.

80 % of the datasheet bandwidth predicts published per-layer profiles of A100, L4, T4 and V100 within 6 %; of the
datasheet rate, half is taken for matrix products as narrow as a draft tree. A measured rate stands in a plan as the
datasheet's from which these parts come to what was measured.
"""

BANDWIDTH_EFFICIENCY = (4, 5)
FLOPS_EFFICIENCY = (1, 2)


def nominal(measured: int, efficiency: tuple[int, int]) -> int:
    """Return the rate of a datasheet of which this part is ``measured``, rounded down."""
    return measured * efficiency[1] // efficiency[0]
