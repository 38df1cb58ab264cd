"""Layers of one kind on one group, in the doubles that the bound of a stage and its linear programme calculate with."""

import math
from dataclasses import dataclass

import numpy as np

from planner.solver.bounds.pieces import Floats, least_cost, least_cost_parts, rates_ns
from planner.solver.problem import Group, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class KindOnGroup:
    """Layers of one kind on one group."""

    share: float
    """Part of all layers of the problem that is of the kind."""
    units: int
    """Units of one layer."""
    unit_bytes: int
    unit_ps: tuple[int, ...]
    """Time of a unit, per member."""
    rates: Floats
    """Time of a unit in ns, per member."""
    split_ns: Floats
    """Per split; empty where the group runs no such layer."""
    split_bytes: Floats
    """[split, member]"""

    @property
    def is_run(self) -> bool:
        """The group may run such layers."""
        return len(self.split_ns) > 0

    def least_ns(self, prices: Floats) -> float:
        """Return the least ns and price of a layer, in fractions of splits and units; infinite where it is not run.

        ``prices``: ns per byte on each member.
        """
        if not self.is_run:
            return math.inf
        split = float((self.split_ns + self.split_bytes @ prices).min())
        return split + self.units * least_cost(self.rates, prices * self.unit_bytes)

    def beyond_ns(self, prices: Floats) -> Floats:
        """Return by how many ns and price a layer of each split is above the least of any, units aside."""
        costs = self.split_ns + self.split_bytes @ prices
        beyond: Floats = costs - costs.min(initial=math.inf)
        return beyond

    def least_bytes(self, weights: Floats) -> float:
        """Return the least bytes of a layer, those of each member times its weight; infinite where it is not run."""
        if not self.is_run:
            return math.inf
        return float((self.split_bytes @ weights).min() + self.units * self.unit_bytes * weights.min())

    def best_bytes(self, prices: Floats) -> Floats:
        """Return [division, member]: bytes of a layer in divisions that take least at these prices, then their mean."""
        cost = self.split_ns + self.split_bytes @ prices
        best = self.split_bytes[cost <= cost.min() * (1 + 1e-12)]
        units = self.units * self.unit_bytes * least_cost_parts(self.rates, prices * self.unit_bytes)
        divisions: Floats = np.vstack([best, best.mean(axis=0)]) + units
        return divisions


def layers_of_kind(problem: Problem, group: Group, k: int) -> KindOnGroup:
    """Return the layers of kind k on a group."""
    kind, splits = problem.kinds[k], group.splits[k]
    unit_ps = group.unit_ps(k, kind)
    return KindOnGroup(
        share=problem.layers_of(k) / problem.layers,
        units=kind.units,
        unit_bytes=kind.unit_bytes,
        unit_ps=unit_ps,
        rates=rates_ns(unit_ps),
        split_ns=np.array([float(split.ns) for split in splits]),
        split_bytes=np.array([split.bytes for split in splits], dtype=np.float64).reshape(
            len(splits), len(group.devices)
        ),
    )
