"""Putting sites together: all layers over all sites, the first stage in exactly one of them.

A *part* is one site as [HOP: no stage runs there, NETWORK: entered over the network, FIRST: has the first stage]; a
*rest* is several sites together as [whether the first stage is among them]. Each is a stack of curves.
"""

import math
from collections.abc import Sequence

import numpy as np

from planner.solver.bounds.combine import Sums
from planner.solver.bounds.site_table import FIRST, HOP, NETWORK
from planner.solver.bounds.stage import Curve


def no_sites(sums: Sums) -> Curve:
    """Return the rest of no site: no layers, and no first stage."""
    return np.stack([sums.no_layers(), np.full(sums.size, math.inf)])


def with_site(sums: Sums, rest: Curve, part: Curve) -> Curve:
    """Return the rest with one more site."""
    idle = rest + part[HOP, 0] if math.isfinite(part[HOP, 0]) else np.full_like(rest, math.inf)
    more = np.minimum(idle, sums.plus(rest, sums.spread(part[NETWORK])))
    more[1] = np.minimum(more[1], sums.plus(rest[0], sums.spread(part[FIRST])))
    return more


def all_but_each(sums: Sums, parts: Sequence[Curve]) -> list[Curve]:
    """Return for each site the rest of all others, by sums from both ends: O(number of sites) additions."""
    before, after = [no_sites(sums)], [no_sites(sums)]
    for part in parts[:-1]:
        before.append(with_site(sums, before[-1], part))
    for part in reversed(parts[1:]):
        after.append(with_site(sums, after[-1], part))
    return [_both(sums, one, other) for one, other in zip(before, reversed(after), strict=True)]


def _both(sums: Sums, one: Curve, other: Curve) -> Curve:
    without_first, with_first = (sums.spread(curve) for curve in other)
    return np.stack(
        [
            sums.plus(one[0], without_first),
            np.minimum(sums.plus(one[1], without_first), sums.plus(one[0], with_first)),
        ]
    )


def all_layers(sums: Sums, part: Curve, rest: Curve) -> float:
    """Return the least ns of all layers when the site of ``part`` is entered, the first stage in exactly one site."""
    return min(sums.all_layers(part[FIRST], rest[0]), sums.all_layers(part[NETWORK], rest[1]))
