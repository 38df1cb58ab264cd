"""Lower bounds of the time of one stage, for every number of layers.

The function is the upper envelope of lines: each is the Lagrangian of the linear programme of a stage (how many layers
of each split, how many units on each member, within each member's memory) for some prices of memory. Whatever the
prices, the line is a bound; good prices are the duals of the programme. Lines are computed in double precision and
lowered by MARGIN, a thousand times their rounding error; times without a price are whole quanta.
"""

import math
from collections.abc import Iterable
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver import pywraplp

from planner.integers import PS_PER_NS
from planner.solver import limits
from planner.solver.problem import Group, Problem

Curve = NDArray[np.float64]
"""Least ns of 0 … L layers; infinite where so many do not fit."""

MARGIN = 1e-9


class StageBound:
    """The linear programme of a stage on one group."""

    def __init__(self, problem: Problem, group: Group, prices: Curve) -> None:
        ((self.splits,), (self.kind,)) = (group.splits, problem.kinds)
        self.paid = prices[list(group.devices)]
        self.once = np.array(group.stage_bytes, dtype=np.float64)
        self.layers = problem.layers
        self.quantum_ns = problem.quantum_ns
        self.unit_ps = [self.kind.unit_ps[d] for d in group.devices]
        self.rates = rates_ns(self.unit_ps)
        self.room = np.array(
            [float(problem.capacity_bytes[d] - n) for d, n in zip(group.devices, group.stage_bytes, strict=True)]
        )
        self.ns = np.array([float(split.ns) for split in self.splits])
        self.bytes = np.array([split.bytes for split in self.splits], dtype=np.float64)
        self.most = self.layers if len(self.splits) and (self.room >= 0).all() else 0
        if self.most:
            self._limit(np.ones(len(self.room)))
        self.line = self._line(self.paid) if self.most else (0.0, math.inf)
        """Slope and value at 0, of what is paid alone."""
        self.lines = [self.line]

    @cached_property
    def _curve(self) -> Curve:
        if self.most:
            self._search()
        found = np.full(self.layers + 1, math.inf)
        counts = np.arange(1, self.most + 1, dtype=np.float64)
        if self.most:
            values = np.max([slope * counts + fixed for slope, fixed in self.lines], axis=0)
            found[1 : self.most + 1] = np.maximum(values, 0) * (1 - MARGIN)
            if not self.paid.any():
                found[1 : self.most + 1] = self._whole(found[1 : self.most + 1])
        return found

    def curve(self) -> Curve:
        """Least time of every number of layers."""
        return self._curve

    def _whole(self, values: Curve) -> Curve:
        """The same in whole quanta and whole units, of which memory is the lines' business."""
        counts = range(1, self.most + 1)
        least_ns = min(split.ns for split in self.splits)
        units = tuple(count * self.kind.units for count in counts)
        quanta = np.array(least_quanta(units, tuple(sorted(self.unit_ps)), self.quantum_ns))
        quanta += [-(-count * least_ns // self.quantum_ns) for count in counts]
        whole: Curve = np.maximum(np.ceil(values / self.quantum_ns), quanta) * float(self.quantum_ns)
        return whole

    def _limit(self, weights: Curve) -> None:
        """No more layers than memory has room for, weighed so."""
        unit = self.kind.units * self.kind.unit_bytes
        each = float((self.bytes @ weights).min() + unit * weights.min())
        if each > 0:
            self.most = min(self.most, math.floor(float(self.room @ weights) / each * (1 + MARGIN)))

    def _line(self, prices: Curve) -> tuple[float, float]:
        """Slope and value at 0 of the Lagrangian bound for these prices of memory, in ns per byte.

        What is paid anyway is part of the value; of what they are higher, the room within the stage is paid back.
        """
        split = float((self.ns + self.bytes @ prices).min())
        units = self.kind.units * least_each(self.rates, prices * self.kind.unit_bytes)
        return split + units, float(self.paid @ self.once) - float((prices - self.paid) @ self.room)

    def _fits(self) -> bool:
        """Whether what is best at what is paid has room, however many layers there are: no other price says more."""
        paid = self.ns + self.bytes @ self.paid
        each = self.bytes[paid <= paid.min() * (1 + 1e-12)]
        units = self.kind.units * self.kind.unit_bytes * least_parts(self.rates, self.paid * self.kind.unit_bytes)
        loads = self.most * (np.vstack([each, each.mean(axis=0)]) + units)
        return bool((loads <= self.room).all(axis=1).any())

    def _search(self) -> None:
        """Lines at the ends, then where two meet below the programme's value."""
        if not self.ns.any() and not any(self.unit_ps):
            return  # where bytes are all that is paid for, this is nearly all there is to know
        if self._fits():
            return
        programme = _Programme(self)
        weights = programme.most_layers()
        if weights is not None:
            self._limit(weights)
        if not self.most:
            return
        points = [float(self.most)]
        while points and len(self.lines) < limits.MOST_LINES:
            point = points.pop()
            prices = programme.prices(point)
            if prices is None:
                continue
            line = self._line(np.maximum(prices, self.paid))
            known = max(slope * point + fixed for slope, fixed in self.lines)
            if line[0] * point + line[1] <= known * (1 + 1e-6):
                continue
            for slope, fixed in self.lines:
                if line[0] > slope:
                    points.append((fixed - line[1]) / (line[0] - slope))
            points = [point for point in points if 1 <= point <= self.most]
            self.lines.append(line)


class _Programme:
    """The same, for the solver that finds good prices."""

    def __init__(self, stage: StageBound) -> None:
        self.solver = solver = pywraplp.Solver.CreateSolver("GLOP")
        self.scale = max(1.0, float(stage.room.max()))
        members = range(len(stage.room))
        self.splits = [solver.NumVar(0, solver.infinity(), "") for _ in stage.splits]
        self.units = [solver.NumVar(0, solver.infinity(), "") for _ in members]
        self.time = solver.NumVar(0, solver.infinity(), "")
        self.total = solver.RowConstraint(0, 0, "")
        units = solver.RowConstraint(0, 0, "")
        for split in self.splits:
            self.total.SetCoefficient(split, 1)
            units.SetCoefficient(split, stage.kind.units)
        self.rooms = []
        for j in members:
            units.SetCoefficient(self.units[j], -1)
            slowest = solver.RowConstraint(-solver.infinity(), 0, "")
            slowest.SetCoefficient(self.units[j], stage.rates[j])
            slowest.SetCoefficient(self.time, -1)
            room = solver.RowConstraint(-solver.infinity(), stage.room[j] / self.scale, "")
            room.SetCoefficient(self.units[j], stage.kind.unit_bytes / self.scale)
            for split, nbytes in zip(self.splits, (stage.bytes[:, j] / self.scale).tolist(), strict=True):
                room.SetCoefficient(split, nbytes)
            self.rooms.append(room)
        self.ns = stage.ns
        self.timed = False

    def _duals(self) -> Curve:
        duals = np.array([room.dual_value() for room in self.rooms], dtype=np.float64)
        prices: Curve = np.maximum(0, -duals) / self.scale
        return prices

    def most_layers(self) -> Curve | None:
        """Weights of memory under which the most layers that fit are fewest."""
        solver = self.solver
        self.total.SetBounds(0, solver.infinity())
        objective = solver.Objective()
        for split in self.splits:
            objective.SetCoefficient(split, -1)
        objective.SetMinimization()
        return self._duals() if solver.Solve() == solver.OPTIMAL else None

    def prices(self, layers: float) -> Curve | None:
        """Duals of memory for so many layers."""
        solver = self.solver
        self.total.SetBounds(layers, layers)
        if not self.timed:
            self.timed = True
            objective = solver.Objective()
            for split, ns in zip(self.splits, self.ns.tolist(), strict=True):
                objective.SetCoefficient(split, ns)
            objective.SetCoefficient(self.time, 1)
        return self._duals() if solver.Solve() == solver.OPTIMAL else None


# ---- pieces ----


def rates_ns(each_ps: Iterable[int]) -> Curve:
    """What takes no time takes next to none: nothing is divided by nothing."""
    return np.array([max(ps / PS_PER_NS, 1e-12) for ps in each_ps])


def least_each(rates: Curve, prices: Curve) -> float:
    """Of each of many pieces dealt out at will: its part of the slowest member's time, and its price.

    The members with the lowest prices take part, all equally long.
    """
    order = np.argsort(prices, kind="stable")
    speed = np.cumsum(1 / rates[order])
    paid = np.cumsum(prices[order] / rates[order])
    return float(((1 + paid) / speed).min())


def least_parts(rates: Curve, prices: Curve) -> Curve:
    """The part of the pieces that each member has when they are dealt out so that this is what each takes."""
    order = np.argsort(prices, kind="stable")
    speed = np.cumsum(1 / rates[order])
    paid = np.cumsum(prices[order] / rates[order])
    members = int(((1 + paid) / speed).argmin()) + 1
    parts = np.zeros(len(rates))
    parts[order[:members]] = 1 / rates[order[:members]] / speed[members - 1]
    return parts


@lru_cache(maxsize=4096)
def least_quanta(counts: tuple[int, ...], each_ps: tuple[int, ...], quantum_ns: int) -> tuple[int, ...]:
    """Of each number of whole pieces, dealt out at will: the quanta that the slowest member takes, exactly."""
    if not all(each_ps):
        return (0,) * len(counts)
    pieces, ps = np.array(counts, dtype=np.int64), np.array(each_ps, dtype=np.int64)
    quantum_ps = PS_PER_NS * quantum_ns
    found = np.floor(pieces / (quantum_ps / ps).sum() * (1 - MARGIN)).astype(np.int64)
    while (few := (found[:, None] * quantum_ps // ps).sum(1) < pieces).any():
        found += few
    return tuple(found.tolist())
