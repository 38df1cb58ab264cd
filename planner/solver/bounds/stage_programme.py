"""The linear programme of a stage for GLOP, for good prices of the memory of its members.

The programme is the one of :mod:`planner.solver.bounds.stage`, without prices in its objective. Its duals only choose
among lines that are all valid bounds, so GLOP's rounding errors do no harm.
"""

import numpy as np
from ortools.linear_solver import pywraplp

from planner.solver.bounds.pieces import Floats


class StageProgramme:
    """Variables: layers per split, units per member, the time of the slowest member."""

    def __init__(
        self,
        *,
        split_ns: Floats,
        split_bytes: Floats,
        units: int,
        unit_bytes: int,
        rates: Floats,
        room_bytes: Floats,
    ) -> None:
        """``split_bytes``: [split, member]; ``units``: of a layer; ``rates``: ns of a unit on each member."""
        self._solver = solver = pywraplp.Solver.CreateSolver("GLOP")
        self._scale = max(1.0, float(room_bytes.max()))
        self._split_ns = split_ns
        self._layers = [solver.NumVar(0, solver.infinity(), "") for _ in split_ns]
        member_units = [solver.NumVar(0, solver.infinity(), "") for _ in room_bytes]
        self._time = solver.NumVar(0, solver.infinity(), "")
        self._total = solver.RowConstraint(0, 0, "")
        total_units = solver.RowConstraint(0, 0, "")
        for variable in self._layers:
            self._total.SetCoefficient(variable, 1)
            total_units.SetCoefficient(variable, units)
        self._rooms = []
        for j, variable in enumerate(member_units):
            total_units.SetCoefficient(variable, -1)
            slowest = solver.RowConstraint(-solver.infinity(), 0, "")
            slowest.SetCoefficient(variable, float(rates[j]))
            slowest.SetCoefficient(self._time, -1)
            room = solver.RowConstraint(-solver.infinity(), float(room_bytes[j]) / self._scale, "")
            room.SetCoefficient(variable, unit_bytes / self._scale)
            for layers, load in zip(self._layers, (split_bytes[:, j] / self._scale).tolist(), strict=True):
                room.SetCoefficient(layers, load)
            self._rooms.append(room)

    def layer_weights(self) -> Floats | None:
        """Return weights of the members' memory under which it has room for the fewest layers.

        These are the duals of maximising the number of layers.
        """
        self._total.SetBounds(0, self._solver.infinity())
        return self._duals([-1.0] * len(self._layers), 0.0)

    def prices(self, layers: float) -> Floats | None:
        """Return prices of the members' memory in ns per byte, the duals with so many layers; None: they do not fit."""
        self._total.SetBounds(layers, layers)
        return self._duals(self._split_ns.tolist(), 1.0)

    def _duals(self, costs: list[float], time_cost: float) -> Floats | None:
        objective = self._solver.Objective()
        for variable, cost in zip(self._layers, costs, strict=True):
            objective.SetCoefficient(variable, cost)
        objective.SetCoefficient(self._time, time_cost)
        objective.SetMinimization()
        if self._solver.Solve() != self._solver.OPTIMAL:
            return None
        duals = np.array([room.dual_value() for room in self._rooms], dtype=np.float64)
        prices: Floats = np.maximum(0, -duals) / self._scale
        return prices
