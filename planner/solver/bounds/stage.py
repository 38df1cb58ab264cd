"""Lower bounds of the time of one stage on one group, for every number of layers.

The relaxation of a stage of n layers of one kind, with fractions, at prices λ of memory in ns per byte:

    minimise    Σ_c ns_c y_c  +  t  +  λ·load
    subject to  Σ_c y_c = n             y_c layers are divided as split c
                Σ_j u_j = units · n     u_j units of member j in all layers
                r_j u_j <= t            each member is at most as slow as t
                load_j = once_j + Σ_c bytes_cj y_c + unit_bytes u_j <= capacity_j

Its Lagrangian for prices π >= λ is a line in n and a lower bound for every n:

    n · (min_c (ns_c + bytes_c·π) + units · least_cost(r, unit_bytes π))  +  λ·once  -  (π - λ)·room

with room = capacity - once. The bound is the upper envelope of the lines for λ itself and for the duals of the
programme at the n where the envelope so far is weakest: at most ``limits.MOST_LINES`` linear programmes. Without a
price of memory the envelope is then raised to what whole units in whole quanta take, memory aside.

With several kinds the Lagrangian falls apart by kind: it is a line in the numbers n_k of layers of each. Layers of a
stage follow one another in the sequence, so that for n of them there are few (n_k), and the bound for n is the least
over these. The programme has all kinds in their proportions of the whole sequence.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.integers import PS_PER_NS, ceil_div
from planner.solver import limits
from planner.solver.bounds.kind_on_group import layers_of_kind
from planner.solver.bounds.pieces import Floats, least_quanta, least_slowest_ps
from planner.solver.bounds.stage_programme import StageProgramme
from planner.solver.problem import Group, Problem

Curve = Floats
"""Index n: a lower bound in ns with n layers, infinite where n layers do not fit. Also a stack of such curves, along
leading axes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """How many layers of each kind consecutive layers may be."""

    counts: NDArray[np.int64]
    """[window, kind], each once, fewest layers first."""
    layers: NDArray[np.int64]
    """[window]: of all kinds together."""


@lru_cache(maxsize=64)
def windows(layer_kinds: tuple[int, ...], is_run: tuple[bool, ...]) -> Windows:
    """Return the windows with layers of those kinds alone that a group runs.

    ``layer_kinds``: kind of each layer, in the order of execution.
    """
    is_kind = np.array(layer_kinds)[:, None] == np.arange(max(layer_kinds) + 1)
    before = np.concatenate([np.zeros((1, is_kind.shape[1]), dtype=np.int64), np.cumsum(is_kind, axis=0)])
    lengths = range(1, len(layer_kinds) + 1)
    counts = np.concatenate([np.unique(before[n:] - before[:-n], axis=0) for n in lengths])
    counts = counts[(counts[:, ~np.array(is_run)] == 0).all(axis=1)]
    return Windows(counts=counts, layers=counts.sum(axis=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A lower bound that is linear in the numbers of layers."""

    slopes: Floats
    """ns of a layer, per kind; infinite where the group runs none of it."""
    fixed: float
    mean: float
    """ns of a layer in the mean over the whole sequence."""

    def at(self, layers: float) -> float:
        """Return the value at so many layers of all kinds in their proportions."""
        return self.mean * layers + self.fixed


class StageBound:
    """The relaxation of a stage on one group."""

    def __init__(self, problem: Problem, group: Group, prices: Floats) -> None:
        """``prices``: ns per byte on each device of the problem."""
        self.problem = problem
        self.prices = prices[list(group.devices)]
        self.quantum_ns = group.quantum_ns
        self.once_bytes = np.array(group.stage_bytes, dtype=np.float64)
        self.room_bytes = np.array(
            [float(problem.capacity_bytes[d] - n) for d, n in zip(group.devices, group.stage_bytes, strict=True)]
        )
        self.kinds = tuple(layers_of_kind(problem, group, k) for k in range(len(problem.kinds)))
        self.windows = windows(problem.layer_kinds, tuple(kind.is_run for kind in self.kinds))
        self.most_layers = problem.layers if any(group.splits) and (self.room_bytes >= 0).all() else 0
        if self.most_layers:
            self._limit_layers(np.ones(len(self.room_bytes)))
        self.line = self._line(self.prices)
        """The line for the given prices."""
        self._is_one_line = True

    @cached_property
    def curve(self) -> Curve:
        """The bound for every number of layers."""
        lines = self._envelope() if self.most_layers else []  # which may lower the most layers
        self._is_one_line = len(lines) < 2
        counts = self._counts
        if not len(counts):
            return np.full(self.problem.layers + 1, math.inf)
        bounds = np.max([self._along(line) for line in lines], axis=0)
        bounds = np.maximum(bounds, 0) * (1 - limits.MARGIN)
        return self._least(bounds if self.prices.any() else self._in_quanta(bounds))

    @property
    def straight(self) -> Curve:
        """The bound for every number of layers by the line for the given prices alone."""
        return self._least(self._along(self.line))

    @cached_property
    def beyond_ns(self) -> tuple[Floats, ...]:
        """By how many ns a layer of each split raises the bound at least, per kind, whichever number of layers.

        Only the line for the given prices tells; where another is above it, nothing is raised. Whole quanta may already
        have raised the bound of the layers of a kind by less than one.
        """
        slack = 0.0 if self.prices.any() else float(self.quantum_ns)
        raised = 1.0 if self._is_one_line else 0.0
        return tuple(raised * (kind.beyond_ns(self.prices) - slack) for kind in self.kinds)

    @property
    def _counts(self) -> NDArray[np.int64]:
        """[window, kind], of those with no more than the most layers."""
        return self.windows.counts[: self._fitting]

    @property
    def _fitting(self) -> int:
        """Windows with no more than the most layers."""
        return int(np.searchsorted(self.windows.layers, self.most_layers, side="right"))

    def _along(self, line: Line) -> Floats:
        """Return the values of a line for all windows that fit."""
        is_run = np.isfinite(line.slopes)
        values: Floats = self._counts[:, is_run] @ line.slopes[is_run] + line.fixed
        return values

    def _least(self, values: Floats) -> Curve:
        """Return the curve of the least value for each number of layers; ``values``: of all windows that fit."""
        curve = np.full(self.problem.layers + 1, math.inf)
        np.minimum.at(curve, self.windows.layers[: self._fitting], values)
        return curve

    def _in_quanta(self, bounds: Floats) -> Floats:
        """Round ``bounds`` up to whole quanta, and to what whole units take in whole quanta, memory aside."""
        quantum_ns = self.quantum_ns
        whole = np.zeros(len(bounds), dtype=np.int64)
        for kind, counted in zip(self.kinds, self._counts.T, strict=True):
            if kind.is_run:
                counts = counted.tolist()
                least_ns = int(kind.split_ns.min())
                unit_ps = tuple(sorted(kind.unit_ps))
                quanta = np.array(least_quanta(tuple(count * kind.units for count in counts), unit_ps, quantum_ns))
                layer_ps = least_slowest_ps(kind.units, unit_ps)
                quanta = np.maximum(quanta, [ceil_div(count * layer_ps, PS_PER_NS * quantum_ns) for count in counts])
                whole += quanta + [ceil_div(count * least_ns, quantum_ns) for count in counts]
        rounded = np.ceil(bounds / quantum_ns - 1e-6)  # what takes no time has a rate of 1e-12 here
        raised: Floats = np.maximum(rounded, whole) * float(quantum_ns)
        return raised

    def _limit_layers(self, weights: Floats) -> None:
        """Lower the most layers to those with weights·(bytes of the layers) <= weights·room."""
        room = float(self.room_bytes @ weights) * (1 + limits.MARGIN)
        layer_bytes = np.array([kind.least_bytes(weights) for kind in self.kinds])
        is_run = np.isfinite(layer_bytes)
        fits = self._counts[:, is_run] @ layer_bytes[is_run] <= room
        self.most_layers = int(self.windows.layers[: self._fitting][fits].max(initial=0))

    def _line(self, prices: Floats) -> Line:
        """Return the Lagrangian for these prices, none below the given ones."""
        fixed = float(self.prices @ self.once_bytes) - float((prices - self.prices) @ self.room_bytes)
        slopes = np.array([kind.least_ns(prices) for kind in self.kinds])
        shares = np.array([kind.share for kind in self.kinds])
        return Line(slopes=slopes, fixed=fixed, mean=float(slopes @ shares))

    def _fits(self) -> bool:
        """Return whether a best division at the given prices has room for the most layers: no other line is higher."""
        largest = self._counts[self.windows.layers[: self._fitting] == self.most_layers]
        loads = np.zeros((len(largest), 1, len(self.room_bytes)))
        for kind, counted in zip(self.kinds, largest.T, strict=True):
            if kind.is_run:
                best = kind.best_bytes(self.prices)
                rows = best if len(self.kinds) == 1 else best[-1:]
                loads = loads + counted[:, None, None] * rows
        has_room = np.all(loads <= self.room_bytes, axis=2)
        return bool(np.all(np.any(has_room, axis=1)))

    def _envelope(self) -> list[Line]:
        """Return the lines whose maximum is the bound; lower the most layers to what fits with fractions."""
        lines = [self.line]
        is_timeless = not any(kind.split_ns.any() or any(kind.unit_ps) for kind in self.kinds)  # bytes alone are paid
        if is_timeless or not math.isfinite(self.line.mean) or self._fits():
            return lines
        programme = StageProgramme(self.kinds, self.room_bytes)
        weights = programme.layer_weights()
        if weights is not None:
            self._limit_layers(weights)
        points = [float(self.most_layers)] if self.most_layers else []
        while points and len(lines) < limits.MOST_LINES:
            point = points.pop()
            prices = programme.prices(point)
            if prices is None:
                continue
            line = self._line(np.maximum(prices, self.prices))
            if line.at(point) <= max(known.at(point) for known in lines) * (1 + 1e-6):
                continue
            # Where the new line crosses a flatter one the envelope is weakest.
            points += [
                (known.fixed - line.fixed) / (line.mean - known.mean) for known in lines if line.mean > known.mean
            ]
            points = [point for point in points if 1 <= point <= self.most_layers]
            lines.append(line)
        return lines
