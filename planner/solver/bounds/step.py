"""Lower bounds of the step time of any answer that uses a given group or option: what need not be searched.

A relaxation that is solved exactly. Stages are priced by a convex function of their number of layers, and put together
over all ways of dealing devices out into disjoint groups (a dynamic programme over how many devices of each kind a
site has left); messages are paid where a site is entered; blocks cost what their cheapest option costs and take no
memory. A group that is in no combination as good as an answer already found is in no optimal answer.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from ortools.linear_solver import pywraplp

from planner.integers import PS_PER_NS
from planner.solver import limits
from planner.solver.bounds.chain import Chain, Excess, received
from planner.solver.bounds.combine import ByLayers, ByPrice
from planner.solver.bounds.hosts import Places, Stages, most_states
from planner.solver.bounds.stage import MARGIN, Curve, least_each, least_quanta, rates_ns
from planner.solver.bounds.whole_layers import whole_bounds
from planner.solver.problem import Block, Group, Option, Problem


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Several bounds, all of them true; none where nothing fits."""

    problem: Problem
    apart: tuple[Excess, ...]
    """Of each part of an answer by itself: an answer takes what its dearest group and all its blocks say, together."""

    whole: Excess | None = None
    """Of an answer of whole layers: what it takes with what is received."""

    unpriced: bool = False
    """Bounds with prices of memory may be added: :meth:`tightened`."""

    @cached_property
    def chained(self) -> tuple[Excess, ...]:
        """With what they receive from one another."""
        found = tuple(Chain(self.problem, each).excess() for each in self.apart)
        return found if self.whole is None else (*found, self.whole)

    @property
    def least(self) -> float:
        """No answer takes less."""
        return max((each.raised for each in self.chained), default=math.inf)

    def tightened(self) -> "Bounds":
        """Return these bounds with those added in which memory has its price; unchanged where it has been priced.

        That costs several times what the first bounds cost, and only helps where memory is short.
        """
        if not self.unpriced:
            return self
        (free,) = self.apart
        prices = _prices(self.problem, free)
        if prices is None or not prices.any():
            return replace(self, unpriced=False)
        return replace(self, unpriced=False, apart=(free, _bounds(self.problem, prices).only(free)))

    def within(self, limit: float) -> Excess:
        """What may be in an answer that takes at most ``limit``: each bound looks at what the others leave."""
        if not self.apart:
            return Excess(least=math.inf, groups={}, received={}, choices=tuple({} for _ in self.problem.blocks))
        kept = self.chained[0].within(limit)
        for each in self.chained[1:]:
            kept = each.only(kept).within(limit)
        for each in self.apart:
            kept = Chain(self.problem, each.only(kept)).excess().within(limit)
        return kept


def lower_bounds(problem: Problem) -> Bounds | None:
    """Bounds of every group and choice; None for problems that this relaxation says nothing about.

    They ignore memory, but for what the layers of one stage take: :meth:`Bounds.tightened` adds those that do not.
    """
    if problem.goal != "time" or len(problem.kinds) > 1 or problem.counts is not None:
        return None
    nothing = np.zeros(len(problem.devices))
    if most_states(problem) > limits.MOST_STATES:
        return None
    free = _bounds(problem, nothing)
    if not free.groups:
        return Bounds(problem=problem, apart=())
    whole = whole_bounds(problem, lambda placed: _bounds(placed, nothing))
    if whole is not None:
        return Bounds(problem=problem, apart=(free,) if whole.groups else (), whole=whole)
    return Bounds(problem=problem, apart=(free,), unpriced=True)


def _bounds(problem: Problem, prices: Curve, far: float = limits.FAR) -> Excess:
    blocks = [_choices_ns(block, prices, problem.quantum_ns) for block in problem.blocks]
    cheapest = [min(costs.values()) for costs in blocks]
    choices = tuple({key: ns - low for key, ns in costs.items()} for costs, low in zip(blocks, cheapest, strict=True))
    starts = received(problem, choices[0])
    stages = _through_groups(Stages(problem, prices), starts, far)
    fixed = sum(cheapest) - float(prices @ np.array(problem.capacity_bytes, dtype=np.float64)) * (1 + MARGIN)
    least = min(stages)
    return Excess(
        least=least + fixed,
        groups={g: bound - least for g, bound in enumerate(stages) if math.isfinite(bound)},
        received=dict(enumerate(starts)),
        choices=choices,
    )


def _through_groups(stages: Stages, starts: Sequence[float], far: float) -> list[float]:
    """The least time of the stages of any answer with each group: exactly where that may be near the least of all.

    What is added up by the price of a layer says which groups these are, where memory has no price: where it has one,
    all are looked at, as what they are told apart by is little. Others are not gone into any further, and an
    answer with one of them takes what the least of them does.
    """
    by_layers = ByLayers(stages.problem.layers)
    groups = range(len(stages.problem.groups))
    slopes = [stage.line[0] for stage in map(stages.of, stages.problem.groups) if stage.most]
    if far < 1 or stages.prices.any() or not slopes or min(slopes) <= 0:
        return Places(stages, starts, by_layers).through_groups(far)
    known = Places(stages, starts, ByPrice(stages.problem.layers, min(slopes))).through_groups(far)
    reach = limits.CLOSE * min(known)
    while True:
        kept = {g for g in groups if known[g] <= reach}
        floor = min((known[g] for g in groups if known[g] > reach), default=math.inf)
        found = Places(stages, starts, by_layers, kept).through_groups(far)
        least = min(found)
        if floor >= limits.CLOSE * least or math.isinf(floor):
            return [max(known[g], min(found[g], floor)) if g in kept else known[g] for g in groups]
        reach = limits.CLOSE * least if math.isfinite(least) else limits.CLOSE * floor


def _choices_ns(block: Block, prices: Curve, quantum_ns: int) -> dict[tuple[int, int], float]:
    """Of each choice; equal ones are computed once."""
    looks = list(zip(prices.tolist(), *(axis.each_ps for axis in block.axes), strict=True))
    number = {look: index for index, look in enumerate(dict.fromkeys(looks))}
    of = [number[look] for look in looks]
    known: dict[tuple[object, ...], list[float]] = {}
    found = {}
    for o, option in enumerate(block.options):
        splits = option.splits[0] if len(option.splits) == 1 else id(option.splits)  # long ones are shared
        key = (splits, option.receive.same_ns, *[of[device] for device in option.devices])
        if key not in known:
            known[key] = _splits_ns(block, option, prices, quantum_ns)
        for c, ns in enumerate(known[key]):
            found[o, c] = ns
    return found


def _splits_ns(block: Block, option: Option, prices: Curve, quantum_ns: int) -> list[float]:
    """The least time and price of a block on an option, for each split; what may be shared has no price."""
    devices = list(option.devices)
    axes = float(option.receive.same_ns)
    paid = np.zeros(len(option.splits))
    if prices.any():
        paid = np.array([split.bytes for split in option.splits], dtype=np.float64) @ prices[devices]
    for axis in block.axes:
        each_ps = [axis.each_ps[device] for device in devices]
        if prices.any():
            paid_each = (0 if axis.shared else axis.each_bytes) * prices[devices]
            axes += axis.count * (least_each(rates_ns(each_ps), paid_each) if any(each_ps) else float(paid_each.min()))
        else:
            axes += quantum_ns * least_quanta((axis.count,), tuple(sorted(each_ps)), quantum_ns)[0]
    return [(ns + axes) * (1 - MARGIN) for ns in (paid + [split.ns for split in option.splits]).tolist()]


def _prices(problem: Problem, bounds: Excess) -> Curve | None:
    """Prices of memory in ns per byte: duals of a linear programme of all that is near the bounds, fractions allowed.

    Whatever they are, the bounds that they lead to are true. Devices that are alike get the same price. None where even
    fractions do not fit.
    """
    found = _Whole(problem, bounds).prices()
    if found is None:
        return None
    looks = [(problem.capacity_bytes[d], problem.kinds[0].unit_ps[d]) for d in range(len(problem.devices))]
    return np.array([np.mean([found[e] for e in range(len(looks)) if looks[e] == look]) for look in looks])


class _Whole:
    """Fractions of stages and blocks, sharing the memory of the devices."""

    def __init__(self, problem: Problem, bounds: Excess) -> None:
        self.solver = solver = pywraplp.Solver.CreateSolver("GLOP")
        self.problem = problem
        self.scale = float(max(problem.capacity_bytes))
        self.rooms = [solver.RowConstraint(-solver.infinity(), n / self.scale, "") for n in problem.capacity_bytes]
        self.layers = solver.RowConstraint(problem.layers, problem.layers, "")
        solver.Objective().SetMinimization()
        for index in sorted(bounds.groups, key=lambda g: (bounds.groups[g], g))[: limits.MOST_GROUPS]:
            self._stage(problem.groups[index])
        for block, known in zip(problem.blocks, bounds.choices, strict=True):
            self._block(block, sorted(known, key=lambda key: (known[key], key))[: limits.MOST_CHOICES])

    def _variable(self, ns: float, loads: Iterable[tuple[int, float]]) -> pywraplp.Variable:
        variable = self.solver.NumVar(0, self.solver.infinity(), "")
        self.solver.Objective().SetCoefficient(variable, float(ns))
        for device, nbytes in loads:
            self.rooms[device].SetCoefficient(variable, nbytes / self.scale)
        return variable

    def _dealt(self, total: pywraplp.Constraint, devices: Iterable[int], rates: Iterable[int], nbytes: int) -> None:
        """Pieces on each device, which the slowest takes its time for."""
        solver, time = self.solver, self._variable(1.0, ())
        for device, each in zip(devices, rates, strict=True):
            pieces = self._variable(0.0, [(device, nbytes)])
            total.SetCoefficient(pieces, -1)
            slowest = solver.RowConstraint(-solver.infinity(), 0, "")
            slowest.SetCoefficient(pieces, each / PS_PER_NS)
            slowest.SetCoefficient(time, -1)

    def _stage(self, group: Group) -> None:
        (kind,), (splits,) = self.problem.kinds, group.splits
        units = self.solver.RowConstraint(0, 0, "")
        for split in splits:
            once = (n / self.problem.layers for n in group.stage_bytes)
            loads = [(d, b + s) for d, b, s in zip(group.devices, split.bytes, once, strict=True)]
            variable = self._variable(split.ns, loads)
            self.layers.SetCoefficient(variable, 1)
            units.SetCoefficient(variable, kind.units)
        self._dealt(units, group.devices, [kind.unit_ps[d] for d in group.devices], kind.unit_bytes)

    def _block(self, block: Block, choices: list[tuple[int, int]]) -> None:
        one = self.solver.RowConstraint(1, 1, "")
        for o, c in choices:
            option = block.options[o]
            split = option.splits[c]
            loads = zip(option.devices, map(float, split.bytes), strict=True)
            one.SetCoefficient(self._variable(split.ns + option.receive.same_ns, loads), 1)
        devices = range(len(self.problem.devices))
        for axis in block.axes:
            total = self.solver.RowConstraint(-axis.count, -axis.count, "")
            self._dealt(total, devices, axis.each_ps, 0 if axis.shared else axis.each_bytes)

    def prices(self) -> list[float] | None:
        if self.solver.Solve() != self.solver.OPTIMAL:
            return None
        return [max(0.0, -room.dual_value()) / self.scale for room in self.rooms]
