"""Prices of memory for the Lagrangian bound: duals of a linear programme over whole placements.

For any prices λ >= 0 of memory, in ns per byte on each device,

    min over answers that may exceed memory of  cost + λ·(load - capacity)   <=   cost of every answer that fits

so any λ gives a true bound, and λ only has to be good. It is the vector of duals of the capacity constraints in the
programme

    minimise  Σ_stages (Σ_c ns_c y_c + t) + Σ_blocks (Σ_x ns_x z_x + Σ_axes t)
    subject to  all layers run;  each block has one choice in all;  units and pieces are divided;  load_d <= capacity_d

over fractions of the groups and choices nearest to the bounds without prices: at most ``limits.MOST_GROUPS`` groups and
``limits.MOST_CHOICES`` choices of each block. A stage pays its ``stage_bytes`` in proportion to its layers.
"""

from collections.abc import Iterable

import numpy as np
from ortools.linear_solver import pywraplp

from planner.integers import PS_PER_NS
from planner.solver import limits
from planner.solver.bounds.excess import Excess
from planner.solver.bounds.pieces import Floats
from planner.solver.problem import Block, Group, Problem


def memory_prices(problem: Problem, bounds: Excess) -> Floats | None:
    """Return the ns per byte on each device; None where even fractions do not fit.

    Devices that nothing tells apart get the same price, so that the dynamic programme may count them.
    """
    duals = _Programme(problem, bounds).prices()
    if duals is None:
        return None
    looks = list(zip(problem.capacity_bytes, *(kind.unit_ps for kind in problem.kinds), strict=True))
    return np.array([np.mean([duals[d] for d, other in enumerate(looks) if other == look]) for look in looks])


class _Programme:
    """The programme above, for GLOP; bytes are scaled by the largest capacity."""

    def __init__(self, problem: Problem, bounds: Excess) -> None:
        self._solver = solver = pywraplp.Solver.CreateSolver("GLOP")
        self._problem = problem
        self._scale = float(max(problem.capacity_bytes))
        self._rooms = [solver.RowConstraint(-solver.infinity(), n / self._scale, "") for n in problem.capacity_bytes]
        counts = map(problem.layers_of, range(len(problem.kinds)))
        self._layers = [solver.RowConstraint(count, count, "") for count in counts]
        solver.Objective().SetMinimization()
        for index in sorted(bounds.groups, key=lambda g: (bounds.groups[g], g))[: limits.MOST_GROUPS]:
            self._add_stage(problem.groups[index])
        for block, known in zip(problem.blocks, bounds.choices, strict=True):
            self._add_block(block, sorted(known, key=lambda key: (known[key], key))[: limits.MOST_CHOICES])

    def prices(self) -> list[float] | None:
        """Return the duals of the capacities in ns per byte."""
        if self._solver.Solve() != self._solver.OPTIMAL:
            return None
        return [max(0.0, -room.dual_value()) / self._scale for room in self._rooms]

    def _variable(self, ns: float, loads: Iterable[tuple[int, float]]) -> pywraplp.Variable:
        """Add a variable that takes ``ns`` and ``loads`` as pairs of device and bytes."""
        variable = self._solver.NumVar(0, self._solver.infinity(), "")
        self._solver.Objective().SetCoefficient(variable, float(ns))
        for device, nbytes in loads:
            self._rooms[device].SetCoefficient(variable, nbytes / self._scale)
        return variable

    def _divide(
        self, total: pywraplp.Constraint, devices: Iterable[int], pieces_ps: Iterable[int], pieces_bytes: Iterable[int]
    ) -> None:
        """Divide the pieces that ``total`` counts over devices; the slowest of them takes its time."""
        solver, time = self._solver, self._variable(1.0, ())
        for device, piece_ps, nbytes in zip(devices, pieces_ps, pieces_bytes, strict=True):
            pieces = self._variable(0.0, [(device, nbytes)])
            total.SetCoefficient(pieces, -1)
            slowest = solver.RowConstraint(-solver.infinity(), 0, "")
            slowest.SetCoefficient(pieces, piece_ps / PS_PER_NS)
            slowest.SetCoefficient(time, -1)

    def _add_stage(self, group: Group) -> None:
        layers_in_all = self._problem.layers
        once = [n / layers_in_all for n in group.stage_bytes]
        kinds = zip(self._problem.kinds, group.splits, self._layers, strict=True)
        for k, (kind, splits, of_kind) in enumerate(kinds):
            units = self._solver.RowConstraint(0, 0, "")
            for split in splits:
                loads = [(d, b + s) for d, b, s in zip(group.devices, split.bytes, once, strict=True)]
                layers = self._variable(split.ns, loads)
                of_kind.SetCoefficient(layers, 1)
                units.SetCoefficient(layers, kind.units)
            self._divide(units, group.devices, group.unit_ps(k, kind), [kind.unit_bytes] * len(group.devices))

    def _add_block(self, block: Block, choices: list[tuple[int, int]]) -> None:
        one = self._solver.RowConstraint(1, 1, "")
        for o, c in choices:
            option = block.options[o]
            split = option.splits[c]
            loads = zip(option.devices, map(float, split.bytes), strict=True)
            one.SetCoefficient(self._variable(split.ns + option.receive.same_ns, loads), 1)
        devices = range(len(self._problem.devices))
        for axis in block.axes:
            total = self._solver.RowConstraint(-axis.count, -axis.count, "")
            own_bytes = 0 if axis.shared else axis.each_bytes
            self._divide(total, devices, axis.each_ps, [own_bytes + nbytes for nbytes in axis.read_bytes])
