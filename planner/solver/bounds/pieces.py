"""Equal pieces divided over the members of a set of devices: the least time of the slowest member.

Member j takes ``r_j`` ns for a piece, and its memory costs ``p_j`` ns for a piece. For fractions ``x_j`` of all pieces

    minimise  max_j r_j x_j + Σ_j p_j x_j    subject to  Σ_j x_j = 1,  x_j >= 0

has an optimum in which the members in use are those with the lowest prices and all take equally long, so it is

    min over k of  (1 + Σ_{j<=k} p_j / r_j) / Σ_{j<=k} 1 / r_j      members sorted by price

in O(m log m) for m members. Without prices the division into whole pieces is solved exactly, in whole quanta.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.integers import PS_PER_NS
from planner.solver import limits

Floats = NDArray[np.float64]


def rates_ns(piece_ps: Iterable[int]) -> Floats:
    """Return the ns of a piece on each member; 0 becomes 1e-12, so that nothing is divided by zero."""
    return np.array([max(ps / PS_PER_NS, 1e-12) for ps in piece_ps])


def least_cost(rates: Floats, prices: Floats) -> float:
    """Return the least time plus price per piece of any fractional division, in ns."""
    _, costs = _prefixes(rates, prices)
    return float(costs.min())


def least_cost_parts(rates: Floats, prices: Floats) -> Floats:
    """Return each member's fraction of the pieces in the division that :func:`least_cost` prices."""
    order, costs = _prefixes(rates, prices)
    members = order[: int(costs.argmin()) + 1]
    parts = np.zeros(len(rates))
    parts[members] = 1 / rates[members]
    parts /= parts.sum()
    return parts


def _prefixes(rates: Floats, prices: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the members sorted by price, and the cost per piece when the first 1, 2, … of them take part."""
    order = np.argsort(prices, kind="stable")
    speed = np.cumsum(1 / rates[order])
    return order, (1 + np.cumsum(prices[order] / rates[order])) / speed


@lru_cache(maxsize=4096)
def least_slowest_ps(count: int, piece_ps: tuple[int, ...]) -> int:
    """Return the least time of the slowest member of any division of so many whole pieces, exactly.

    ``piece_ps``: time of a piece on each member.
    """
    if not all(piece_ps):
        return 0
    even_ps = count / sum(1 / ps for ps in piece_ps) * (1 - limits.MARGIN)
    counts = [int(even_ps / ps) for ps in piece_ps]
    slowest_ps = 0
    for _ in range(count - sum(counts)):
        slowest_ps, j = min((ps * (n + 1), j) for j, (ps, n) in enumerate(zip(piece_ps, counts, strict=True)))
        counts[j] += 1
    return slowest_ps


@lru_cache(maxsize=4096)
def least_quanta(counts: tuple[int, ...], piece_ps: tuple[int, ...], quantum_ns: int) -> tuple[int, ...]:
    """Return for each number of pieces the quanta that the slowest member takes at least, in whole pieces, exactly.

    ``piece_ps``: time of a piece on each member. It is the least q with Σ_j floor(q · quantum / piece_j) >= count.
    """
    if not all(piece_ps):
        return (0,) * len(counts)
    pieces, ps = np.array(counts, dtype=np.int64), np.array(piece_ps, dtype=np.int64)
    quantum_ps = PS_PER_NS * quantum_ns
    quanta = np.floor(pieces / (quantum_ps / ps).sum() * (1 - limits.MARGIN)).astype(np.int64)
    while True:
        done = quanta[:, None] * quantum_ps // ps
        few = done.sum(axis=1) < pieces
        if not few.any():
            break
        next_done = -(-(done[few] + 1) * ps // quantum_ps)  # of each member: the quanta by which one piece more is done
        quanta[few] = next_done.min(axis=1)
    return tuple(quanta.tolist())
