"""The linear programme of a stage for GLOP, for good prices of the memory of its members.

The programme is the one of :mod:`planner.solver.bounds.stage`, without prices in its objective. Its duals only choose
among lines that are all valid bounds, so GLOP's rounding errors do no harm.
"""

from collections.abc import Sequence

import numpy as np
from ortools.linear_solver import pywraplp

from planner.solver.bounds.kind_on_group import KindOnGroup
from planner.solver.bounds.pieces import Floats


class StageProgramme:
    """Variables, per kind: layers per split, units per member, the time of the slowest member."""

    def __init__(self, kinds: Sequence[KindOnGroup], room_bytes: Floats) -> None:
        """``kinds``: all kinds of the problem, each of which the group runs."""
        self._solver = solver = pywraplp.Solver.CreateSolver("GLOP")
        self._scale = max(1.0, float(room_bytes.max()))
        self._kinds = kinds
        self._layers = [[solver.NumVar(0, solver.infinity(), "") for _ in kind.split_ns] for kind in kinds]
        self._total = solver.RowConstraint(0, 0, "")
        for variable in (variable for layers in self._layers for variable in layers):
            self._total.SetCoefficient(variable, 1)
        self._rooms = [solver.RowConstraint(-solver.infinity(), float(room) / self._scale, "") for room in room_bytes]
        self._times = [self._add_kind(kind, layers) for kind, layers in zip(kinds, self._layers, strict=True)]
        for kind, layers in zip(kinds[1:], self._layers[1:], strict=True):
            in_proportion = solver.RowConstraint(0, 0, "")
            for variable in layers:
                in_proportion.SetCoefficient(variable, kinds[0].share)
            for variable in self._layers[0]:
                in_proportion.SetCoefficient(variable, -kind.share)

    def _add_kind(self, kind: KindOnGroup, layers: Sequence[pywraplp.Variable]) -> pywraplp.Variable:
        """Add units and bytes of the layers of a kind; return the time of the slowest member."""
        solver, time = self._solver, self._solver.NumVar(0, self._solver.infinity(), "")
        total_units = solver.RowConstraint(0, 0, "")
        for variable in layers:
            total_units.SetCoefficient(variable, kind.units)
        for j, room in enumerate(self._rooms):
            units = solver.NumVar(0, solver.infinity(), "")
            total_units.SetCoefficient(units, -1)
            slowest = solver.RowConstraint(-solver.infinity(), 0, "")
            slowest.SetCoefficient(units, float(kind.rates[j]))
            slowest.SetCoefficient(time, -1)
            room.SetCoefficient(units, kind.unit_bytes / self._scale)
            for variable, load in zip(layers, (kind.split_bytes[:, j] / self._scale).tolist(), strict=True):
                room.SetCoefficient(variable, load)
        return time

    def layer_weights(self) -> Floats | None:
        """Return weights of the members' memory under which it has room for the fewest layers.

        These are the duals of maximising the number of layers.
        """
        self._total.SetBounds(0, self._solver.infinity())
        return self._duals([[-1.0] * len(layers) for layers in self._layers], 0.0)

    def prices(self, layers: float) -> Floats | None:
        """Return prices of the members' memory in ns per byte, the duals with so many layers; None: they do not fit."""
        self._total.SetBounds(layers, layers)
        return self._duals([kind.split_ns.tolist() for kind in self._kinds], 1.0)

    def _duals(self, costs: Sequence[Sequence[float]], time_cost: float) -> Floats | None:
        objective = self._solver.Objective()
        for layers, of_splits in zip(self._layers, costs, strict=True):
            for variable, cost in zip(layers, of_splits, strict=True):
                objective.SetCoefficient(variable, cost)
        for time in self._times:
            objective.SetCoefficient(time, time_cost)
        objective.SetMinimization()
        if self._solver.Solve() != self._solver.OPTIMAL:
            return None
        duals = np.array([room.dual_value() for room in self._rooms], dtype=np.float64)
        prices: Floats = np.maximum(0, -duals) / self._scale
        return prices
