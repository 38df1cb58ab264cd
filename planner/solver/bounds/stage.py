"""Lower bounds of the time of one stage on one group, for every number of layers.

The relaxation of a stage of n layers, with fractions, at prices λ of memory in ns per byte:

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
"""

import math
from functools import cached_property

import numpy as np

from planner.integers import PS_PER_NS, ceil_div
from planner.solver import limits
from planner.solver.bounds.pieces import Floats, least_cost, least_cost_parts, least_quanta, least_slowest_ps, rates_ns
from planner.solver.bounds.stage_programme import StageProgramme
from planner.solver.problem import Group, Problem

Curve = Floats
"""Index n: a lower bound in ns with n layers, infinite where n layers do not fit. Also a stack of such curves, along
leading axes."""


class StageBound:
    """The relaxation of a stage on one group."""

    def __init__(self, problem: Problem, group: Group, prices: Floats) -> None:
        """``prices``: ns per byte on each device of the problem."""
        ((splits,), (self.kind,)) = (group.splits, problem.kinds)
        self.problem = problem
        self.prices = prices[list(group.devices)]
        self.quantum_ns = group.quantum_ns
        self.once_bytes = np.array(group.stage_bytes, dtype=np.float64)
        self.unit_ps = [self.kind.unit_ps[d] for d in group.devices]
        self.rates = rates_ns(self.unit_ps)
        self.room_bytes = np.array(
            [float(problem.capacity_bytes[d] - n) for d, n in zip(group.devices, group.stage_bytes, strict=True)]
        )
        self.split_ns = np.array([float(split.ns) for split in splits])
        self.split_bytes = np.array([split.bytes for split in splits], dtype=np.float64)
        self.most_layers = problem.layers if len(splits) and (self.room_bytes >= 0).all() else 0
        if self.most_layers:
            self._limit_layers(np.ones(len(self.room_bytes)))
        self.line = self._line(self.prices) if self.most_layers else (0.0, math.inf)
        """Slope and value at 0 of the line for the given prices."""

    @cached_property
    def curve(self) -> Curve:
        """The bound for every number of layers."""
        lines = self._envelope() if self.most_layers else []
        curve = np.full(self.problem.layers + 1, math.inf)
        if self.most_layers:  # which the envelope may have lowered
            counts = np.arange(1, self.most_layers + 1, dtype=np.float64)
            bounds = np.max([slope * counts + fixed for slope, fixed in lines], axis=0)
            bounds = np.maximum(bounds, 0) * (1 - limits.MARGIN)
            curve[1 : self.most_layers + 1] = bounds if self.prices.any() else self._in_quanta(bounds)
        return curve

    def _in_quanta(self, bounds: Floats) -> Floats:
        """Round ``bounds`` up to whole quanta, and to what whole units take in whole quanta, memory aside."""
        quantum_ns = self.quantum_ns
        counts = range(1, self.most_layers + 1)
        least_ns = int(self.split_ns.min())
        units = tuple(count * self.kind.units for count in counts)
        quanta = np.array(least_quanta(units, tuple(sorted(self.unit_ps)), quantum_ns))
        layer_ps = least_slowest_ps(self.kind.units, tuple(sorted(self.unit_ps)))
        quanta = np.maximum(quanta, [ceil_div(count * layer_ps, PS_PER_NS * quantum_ns) for count in counts])
        quanta += [ceil_div(count * least_ns, quantum_ns) for count in counts]
        rounded = np.ceil(bounds / quantum_ns - 1e-6)  # what takes no time has a rate of 1e-12 here
        whole: Floats = np.maximum(rounded, quanta) * float(quantum_ns)
        return whole

    def _limit_layers(self, weights: Floats) -> None:
        """Lower the most layers to those with n · weights·(bytes of a layer) <= weights·room."""
        unit_bytes = self.kind.units * self.kind.unit_bytes
        layer_bytes = float((self.split_bytes @ weights).min() + unit_bytes * weights.min())
        if layer_bytes > 0:
            most = math.floor(float(self.room_bytes @ weights) / layer_bytes * (1 + limits.MARGIN))
            self.most_layers = min(self.most_layers, most)

    def _line(self, prices: Floats) -> tuple[float, float]:
        """Return slope and value at 0 of the Lagrangian for these prices, none below the given ones."""
        split = float((self.split_ns + self.split_bytes @ prices).min())
        units = self.kind.units * least_cost(self.rates, prices * self.kind.unit_bytes)
        fixed = float(self.prices @ self.once_bytes) - float((prices - self.prices) @ self.room_bytes)
        return split + units, fixed

    def _fits(self) -> bool:
        """Return whether a best division at the given prices has room for the most layers: no other line is higher."""
        cost = self.split_ns + self.split_bytes @ self.prices
        best = self.split_bytes[cost <= cost.min() * (1 + 1e-12)]
        unit_bytes = self.kind.units * self.kind.unit_bytes
        units = unit_bytes * least_cost_parts(self.rates, self.prices * self.kind.unit_bytes)
        loads = self.most_layers * (np.vstack([best, best.mean(axis=0)]) + units)
        return bool((loads <= self.room_bytes).all(axis=1).any())

    def _envelope(self) -> list[tuple[float, float]]:
        """Return the lines whose maximum is the bound; lower the most layers to what fits with fractions."""
        lines = [self.line]
        is_timeless = not self.split_ns.any() and not any(self.unit_ps)  # then bytes are all that is paid for
        if is_timeless or self._fits():
            return lines
        programme = StageProgramme(
            split_ns=self.split_ns,
            split_bytes=self.split_bytes,
            units=self.kind.units,
            unit_bytes=self.kind.unit_bytes,
            rates=self.rates,
            room_bytes=self.room_bytes,
        )
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
            if _value(line, point) <= max(_value(known, point) for known in lines) * (1 + 1e-6):
                continue
            # Where the new line crosses a flatter one the envelope is weakest.
            points += [(fixed - line[1]) / (line[0] - slope) for slope, fixed in lines if line[0] > slope]
            points = [point for point in points if 1 <= point <= self.most_layers]
            lines.append(line)
        return lines


def _value(line: tuple[float, float], layers: float) -> float:
    return line[0] * layers + line[1]
