"""Adding the bounds of stages up under the constraint that all their layers are L: exactly, or by a relaxation.

For stages with bounds f_1(n_1), f_2(n_2), … the least of Σ f_i(n_i) with Σ n_i = L is wanted.

* :class:`ByLayers` keeps the function of n for every set of stages; two sets are added by the (min, +) convolution
  ``h(n) = min over m of f(m) + g(n - m)``. Exact, O(L²) for each addition.
* :class:`ByPrice` relaxes Σ n_i = L with a price p of a layer (a Lagrangian relaxation): for every p

      L p + Σ_i min over n_i of (f_i(n_i) - p n_i)   <=   min Σ_i f_i(n_i),

  so it keeps one number for each p of a grid, these simply add up, and the maximum over the grid is a bound. O(1) for
  each addition and price. It is weaker than the other: every stage is a line here, and prices are those of the grid.

The dynamic programme over devices (:mod:`planner.solver.bounds.site_table`) is the same for both.
"""

import math
from typing import Protocol

import numpy as np

from planner.solver import limits
from planner.solver.bounds.stage import Curve, StageBound


class Sums(Protocol):
    """One way to add stages up; the functions take stacks of curves along leading axes."""

    size: int
    """Length of a curve."""

    def curve(self, stage: StageBound) -> Curve:
        """Return the curve of one stage."""

    def no_layers(self) -> Curve:
        """Return the curve of no stage: 0 ns, no layers."""

    def spread(self, curve: Curve) -> Curve:
        """Prepare a curve for being added to many others."""

    def plus(self, curve: Curve, spread: Curve) -> Curve:
        """Return the curve of both together."""

    def all_layers(self, one: Curve, other: Curve) -> float:
        """Return the least ns of both together with all layers."""

    def with_all(self, curve: Curve, ns: float) -> Curve:
        """Add ``ns`` to a curve of one stage where it has all layers, if the curve tells."""


class ByLayers:
    """Curves over 0 … L layers, infinite where so many do not fit."""

    def __init__(self, layers: int) -> None:
        self.size = layers + 1

    def curve(self, stage: StageBound) -> Curve:
        return stage.curve

    def no_layers(self) -> Curve:
        curve = np.full(self.size, math.inf)
        curve[0] = 0
        return curve

    def spread(self, curve: Curve) -> Curve:
        """Return the matrix [n, m]: the curve at n - m, infinite where that is negative."""
        padded = np.concatenate([np.full(self.size - 1, math.inf), curve])
        step = padded.itemsize
        return np.ndarray((self.size, self.size), padded.dtype, padded, (self.size - 1) * step, (step, -step)).copy()

    def plus(self, curve: Curve, spread: Curve) -> Curve:
        sums: Curve = (curve[..., None, :] + spread).min(axis=-1)
        return sums

    def all_layers(self, one: Curve, other: Curve) -> float:
        return float((one + other[::-1]).min())

    def with_all(self, curve: Curve, ns: float) -> Curve:
        return np.concatenate([curve[:-1], curve[-1:] + ns])


class ByPrice:
    """Curves over prices of a layer: from the least ns per layer of any stage up to 21 times that, denser near it."""

    def __init__(self, layers: int, least_ns: float) -> None:
        """``least_ns``: the least slope of any stage's line."""
        self.layers = layers
        self.prices = least_ns * (1 + np.concatenate([[0], np.geomspace(0.002, 20, 39)]))
        self.size = len(self.prices)

    def curve(self, stage: StageBound) -> Curve:
        """Return min over n of line(n) - p n."""
        straight = stage.straight[1:, None]
        counts = np.arange(1, len(straight) + 1)[:, None]
        curve: Curve = (straight - counts * self.prices).min(axis=0)
        return curve

    def no_layers(self) -> Curve:
        return np.zeros(self.size)

    def spread(self, curve: Curve) -> Curve:
        return curve

    def plus(self, curve: Curve, spread: Curve) -> Curve:
        return curve + spread

    def all_layers(self, one: Curve, other: Curve) -> float:
        return float((self.layers * self.prices + one + other).max()) * (1 - limits.MARGIN)

    def with_all(self, curve: Curve, ns: float) -> Curve:
        return curve
