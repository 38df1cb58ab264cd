"""What stages take by how many layers they have, and what several of them take together.

Either the least for every number of layers, put together by the least over all ways to divide them: exact, and a
square of work. Or, for prices of a layer, the least that is left when each layer is paid for so: these simply add up,
and with the price of all layers they are a lower bound, whatever the prices.
"""

import math
from typing import Protocol

import numpy as np

from planner.solver.bounds.stage import MARGIN, Curve, StageBound


class Sums(Protocol):
    """A way to put stages together; curves may have leading axes."""

    size: int
    """Of a curve."""

    def curve(self, stage: StageBound) -> Curve:
        """Of one stage."""

    def no_layers(self) -> Curve:
        """Where nothing runs."""

    def spread(self, curve: Curve) -> Curve:
        """A curve, made ready to be added many times."""

    def plus(self, one: Curve, spread: Curve) -> Curve:
        """Both together."""

    def all_layers(self, one: Curve, other: Curve) -> float:
        """The least when these two have all layers."""

    def with_all(self, curve: Curve, ns: float) -> Curve:
        """More where one stage has all layers."""


class ByLayers:
    """Curves over 0 … L layers, infinite where so many do not fit."""

    def __init__(self, layers: int) -> None:
        self.size = layers + 1

    def curve(self, stage: StageBound) -> Curve:
        return stage.curve()

    def no_layers(self) -> Curve:
        found = np.full(self.size, math.inf)
        found[0] = 0
        return found

    def spread(self, curve: Curve) -> Curve:
        """[n, m]: the curve at n - m."""
        padded = np.concatenate([np.full(self.size - 1, math.inf), curve])
        step = padded.itemsize
        return np.ndarray((self.size, self.size), padded.dtype, padded, (self.size - 1) * step, (step, -step)).copy()

    def plus(self, one: Curve, spread: Curve) -> Curve:
        sums: Curve = (one[..., None, :] + spread).min(axis=-1)
        return sums

    def all_layers(self, one: Curve, other: Curve) -> float:
        return float((one + other[::-1]).min())

    def with_all(self, curve: Curve, ns: float) -> Curve:
        return np.concatenate([curve[:-1], curve[-1:] + ns])


class ByPrice:
    """Curves over prices of a layer: around the least that a layer takes of any stage, the closer the denser."""

    def __init__(self, layers: int, least_ns: float) -> None:
        self.layers = layers
        self.prices = least_ns * (1 + np.concatenate([[0], np.geomspace(0.002, 20, 39)]))
        self.size = len(self.prices)

    def curve(self, stage: StageBound) -> Curve:
        """A line is least at one of its ends."""
        if not stage.most:
            return np.full(self.size, math.inf)
        slope, fixed = stage.line
        found: Curve = fixed + np.minimum(slope - self.prices, stage.most * (slope - self.prices))
        return found

    def no_layers(self) -> Curve:
        return np.zeros(self.size)

    def spread(self, curve: Curve) -> Curve:
        return curve

    def plus(self, one: Curve, spread: Curve) -> Curve:
        return one + spread

    def all_layers(self, one: Curve, other: Curve) -> float:
        return float((self.layers * self.prices + one + other).max()) * (1 - MARGIN)

    def with_all(self, curve: Curve, ns: float) -> Curve:
        return curve
