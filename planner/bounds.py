"""Lower bounds of the step time of any answer that uses a given group or option: what need not be searched.

A relaxation that is solved exactly. Stages are priced by a convex function of their number of layers, and put together
over all ways of dealing devices out into disjoint groups (a dynamic programme over how many devices of each kind a
place has left); messages are paid where a place is entered; blocks cost what their cheapest option costs and take no
memory. A group that is in no combination as good as an answer already found is in no optimal answer.

The function of a stage is the upper envelope of lines: each is the Lagrangian of the linear programme of a stage (how
many layers of each column, how many units on each member, within each member's memory) for some prices of memory.
Whatever the prices, the line is a bound; good prices are the duals of the programme. Lines are computed in double
precision and lowered by MARGIN, a thousand times their rounding error; times without a price are whole quanta.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver import pywraplp

from planner.cost import PS_PER_NS
from planner.problem import Block, Column, Group, Option, Problem, Receive

Curve = NDArray[np.float64]
"""Least ns of 0 … L layers; infinite where so many do not fit."""

MARGIN = 1e-9
MOST_STATES = 5000
"""Of one place: ways to have taken some of its devices, up to renaming of equal ones."""

MOST_LINES = 8

MOST_GROUPS = 60
MOST_CHOICES = 200
"""Of each block: as much as these near the bounds is looked at for prices of memory."""

FAR = 1.03
"""Groups over several hosts whose own bound is so much above the least are not looked into."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Excess:
    """How much more than ``least`` an answer takes at least that uses a group, or has a block so placed.

    What is not listed is in no answer.
    """

    least: float
    groups: dict[int, float]
    choices: tuple[dict[tuple[int, int], float], ...]
    """Of each block, of each pair of an option and a column of it."""

    @property
    def raised(self) -> float:
        """A bound of every answer: one group at least is used, and each block is somewhere."""
        cheapest = [min(self.groups.values(), default=math.inf)]
        cheapest += [min(each.values(), default=math.inf) for each in self.choices]
        return self.least + max(cheapest)

    def within(self, limit: float) -> "Excess":
        """Without what is in no answer that takes at most ``limit``."""
        room = limit - self.least
        return Excess(
            least=self.least,
            groups={g: excess for g, excess in self.groups.items() if excess <= room},
            choices=tuple({key: excess for key, excess in each.items() if excess <= room} for each in self.choices),
        )

    def only(self, other: "Excess") -> "Excess":
        """Without what another has not."""
        return Excess(
            least=self.least,
            groups={g: excess for g, excess in self.groups.items() if g in other.groups},
            choices=tuple(
                {key: excess for key, excess in mine.items() if key in theirs}
                for mine, theirs in zip(self.choices, other.choices, strict=True)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Several bounds, all of them true; none where nothing fits."""

    problem: Problem
    apart: tuple[Excess, ...]
    """Of each part of an answer by itself: an answer takes what its dearest group and all its blocks say, together."""

    @cached_property
    def chained(self) -> tuple[Excess, ...]:
        """With what they receive from one another."""
        return tuple(_Chain(self.problem, each).excess() for each in self.apart)

    @property
    def least(self) -> float:
        """No answer takes less."""
        return max((each.raised for each in self.chained), default=math.inf)

    def within(self, limit: float) -> Excess:
        """What may be in an answer that takes at most ``limit``: each bound looks at what the others leave."""
        if not self.apart:
            return Excess(least=math.inf, groups={}, choices=tuple({} for _ in self.problem.blocks))
        kept = self.chained[0].within(limit)
        for each in self.chained[1:]:
            kept = each.only(kept).within(limit)
        for each in self.apart:
            kept = _Chain(self.problem, each.only(kept)).excess().within(limit)
        return kept


def lower_bounds(problem: Problem) -> Bounds | None:
    """Bounds of every group and choice; None for problems that this relaxation says nothing about.

    The first is with memory for nothing, where blocks take none from the stages. The second is at prices of memory,
    where every byte is paid for and all memory is paid back: what answers that fit pay no more for. Before both, what
    is in no answer that fits: where time costs nothing and every byte the same, it pays more than all memory.
    """
    if problem.goal != "time" or len(problem.kinds) > 1 or problem.counts is not None:
        return None
    nowhere = np.zeros(len(problem.devices))
    free = _bounds(problem, nowhere)
    if free is None:
        return None
    room = _bounds(_timeless(problem), nowhere + 1)
    assert room is not None
    free = free.only(room.within(0))
    if not free.groups or not all(free.choices):
        return Bounds(problem=problem, apart=())
    prices = _prices(problem, free)
    priced = _bounds(problem, prices) if prices.any() else None
    return Bounds(problem=problem, apart=(free,) if priced is None else (free, priced.only(free)))


def _timeless(problem: Problem) -> Problem:
    """The same with nothing that takes time."""
    nothing = Receive(same_ns=0, inside_ns=0, near_ns=0, far_ns=0)
    none = (0,) * len(problem.devices)
    known: dict[int, tuple[Column, ...]] = {}

    def timeless(columns: tuple[Column, ...]) -> tuple[Column, ...]:
        if id(columns) not in known:  # most groups of a look have the same object
            known[id(columns)] = tuple(replace(column, ns=0) for column in columns)
        return known[id(columns)]

    def block(each: Block) -> Block:
        options = (replace(o, columns=timeless(o.columns), receive=nothing) for o in each.options)
        return Block(options=tuple(options), axes=tuple(replace(axis, each_ps=none) for axis in each.axes))

    return replace(
        problem,
        kinds=tuple(replace(kind, unit_ps=none) for kind in problem.kinds),
        groups=tuple(
            replace(group, columns=(timeless(group.columns[0]),), hop_ns=0, network_hop_ns=0, first=nothing)
            for group in problem.groups
        ),
        first=block(problem.first),
        last=block(problem.last),
        tail=block(problem.tail) if problem.tail else None,
        message_ns=(0,) * len(problem.hosts),
        network_message_ns=0,
    )


def _bounds(problem: Problem, prices: Curve) -> Excess | None:
    places = _Places(problem, prices)
    if places.most_states > MOST_STATES:
        return None
    stages = places.through_groups()
    blocks = [
        {
            (o, c): ns
            for o, option in enumerate(block.options)
            for c, ns in enumerate(_columns_ns(block, option, prices, problem.quantum_ns))
        }
        for block in problem.blocks
    ]
    cheapest = [min(costs.values()) for costs in blocks]
    fixed = sum(cheapest) - float(prices @ np.array(problem.capacity_bytes, dtype=np.float64)) * (1 + MARGIN)
    least = min(stages)
    return Excess(
        least=least + fixed,
        groups={g: bound - least for g, bound in enumerate(stages) if math.isfinite(bound)},
        choices=tuple(
            {key: ns - low for key, ns in costs.items()} for costs, low in zip(blocks, cheapest, strict=True)
        ),
    )


def _columns_ns(block: Block, option: Option, prices: Curve, quantum_ns: int) -> list[float]:
    """The least time and price of a block on an option, for each column; what may be shared has no price."""
    devices = list(option.devices)
    axes = float(option.receive.same_ns)
    paid = np.zeros(len(option.columns))
    if prices.any():
        paid = np.array([column.bytes for column in option.columns], dtype=np.float64) @ prices[devices]
    for axis in block.axes:
        each_ps = [axis.each_ps[device] for device in devices]
        if prices.any():
            each = 0 if axis.shared else axis.each_bytes
            axes += axis.count * _least_each(_rates_ns(each_ps), each * prices[devices])
        else:
            axes += quantum_ns * _least_quanta((axis.count,), tuple(sorted(each_ps)), quantum_ns)[0]
    return [(ns + axes) * (1 - MARGIN) for ns in (paid + [column.ns for column in option.columns]).tolist()]


def _rates_ns(each_ps: Iterable[int]) -> Curve:
    """What takes no time takes next to none: nothing is divided by nothing."""
    return np.array([max(ps / PS_PER_NS, 1e-12) for ps in each_ps])


def _least_each(rates: Curve, prices: Curve) -> float:
    """Of each of many pieces dealt out at will: its part of the slowest member's time, and its price.

    The members with the lowest prices take part, all equally long.
    """
    order = np.argsort(prices, kind="stable")
    speed = np.cumsum(1 / rates[order])
    paid = np.cumsum(prices[order] / rates[order])
    return float(((1 + paid) / speed).min())


@lru_cache(maxsize=4096)
def _least_quanta(counts: tuple[int, ...], each_ps: tuple[int, ...], quantum_ns: int) -> tuple[int, ...]:
    """Of each number of whole pieces, dealt out at will: the quanta that the slowest member takes, exactly."""
    if not all(each_ps):
        return (0,) * len(counts)
    pieces, ps = np.array(counts, dtype=np.int64), np.array(each_ps, dtype=np.int64)
    quantum_ps = PS_PER_NS * quantum_ns
    found = np.floor(pieces / (quantum_ps / ps).sum() * (1 - MARGIN)).astype(np.int64)
    while (few := (found[:, None] * quantum_ps // ps).sum(1) < pieces).any():
        found += few
    return tuple(found.tolist())


def _prices(problem: Problem, bounds: Excess) -> Curve:
    """Prices of memory in ns per byte: duals of a linear programme of all that is near the bounds, fractions allowed.

    Whatever they are, the bounds that they lead to are true. Devices that are alike get the same price.
    """
    programme = _Whole(problem, bounds)
    found = programme.prices()
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
        for index in sorted(bounds.groups, key=lambda g: (bounds.groups[g], g))[:MOST_GROUPS]:
            self._stage(problem.groups[index])
        for block, known in zip(problem.blocks, bounds.choices, strict=True):
            self._block(block, sorted(known, key=lambda key: (known[key], key))[:MOST_CHOICES])

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
        (kind,), (columns,) = self.problem.kinds, group.columns
        units = self.solver.RowConstraint(0, 0, "")
        for column in columns:
            once = (n / self.problem.layers for n in group.stage_bytes)
            loads = [(d, b + s) for d, b, s in zip(group.devices, column.bytes, once, strict=True)]
            variable = self._variable(column.ns, loads)
            self.layers.SetCoefficient(variable, 1)
            units.SetCoefficient(variable, kind.units)
        self._dealt(units, group.devices, [kind.unit_ps[d] for d in group.devices], kind.unit_bytes)

    def _block(self, block: Block, choices: list[tuple[int, int]]) -> None:
        one = self.solver.RowConstraint(1, 1, "")
        for o, c in choices:
            option = block.options[o]
            column = option.columns[c]
            loads = zip(option.devices, map(float, column.bytes), strict=True)
            one.SetCoefficient(self._variable(column.ns + option.receive.same_ns, loads), 1)
        devices = range(len(self.problem.devices))
        for axis in block.axes:
            total = self.solver.RowConstraint(-axis.count, -axis.count, "")
            self._dealt(total, devices, axis.each_ps, 0 if axis.shared else axis.each_bytes)

    def prices(self) -> list[float]:
        if self.solver.Solve() != self.solver.OPTIMAL:
            return [0.0] * len(self.rooms)
        return [max(0.0, -room.dual_value()) / self.scale for room in self.rooms]


# ---- the chain ----


class _Names(dict[tuple[int, ...], int]):
    """Numbers of sets of devices."""

    def __missing__(self, devices: tuple[int, ...]) -> int:
        self[devices] = len(self)
        return self[devices]


class _Link:
    """A link of the chain: all that may be it, as a sender and as a receiver.

    Several candidates may be on one set of devices, and receive alike: ``of`` is which of them a candidate has.
    """

    def __init__(self, problem: Problem, of: Sequence[int], receivers: Sequence[Option | Group], names: _Names) -> None:
        self.of = np.array(of, dtype=np.int64)
        self.devices = np.array([names[each.devices] for each in receivers], dtype=np.int64)
        self.leader = np.array([each.devices[0] for each in receivers], dtype=np.int64)
        self.more = np.array([_more_ns(problem, each) for each in receivers], dtype=np.float64)

    def least(self, costs: Curve) -> Curve:
        """Of candidates with the same devices the least."""
        found = np.full(len(self.leader), math.inf)
        np.minimum.at(found, self.of, costs)
        return found


def _more_ns(problem: Problem, target: Option | Group) -> list[int]:
    """What is received from each device as the leader, beyond ``same_ns``, which is in bounds already."""
    receive = target.first if isinstance(target, Group) else target.receive
    places = (target.place,) if isinstance(target, Group) else target.places
    found = [receive.far_ns - receive.same_ns] * len(problem.devices)
    for place in places:
        for device in problem.hosts[place] if place < len(problem.hosts) else ():
            found[device] = receive.near_ns - receive.same_ns
    for device in target.devices:
        found[device] = receive.inside_ns - receive.same_ns
    return found


class _Chain:
    """Shortest ways through the chain of block, stages, block and block, by what each receives from the one before."""

    def __init__(self, problem: Problem, bounds: Excess) -> None:
        self.problem = problem
        self.bounds = bounds
        self.groups = list(bounds.groups)
        self.keys = [list(known) for known in bounds.choices]

    def excess(self) -> Excess:
        """Of groups and choices: the least that an answer with them takes more than ``least``."""
        if not self.groups or not all(self.keys):
            return Excess(least=self.bounds.least, groups={}, choices=tuple({} for _ in self.keys))
        names = _Names()
        problem = self.problem
        stages = _Link(problem, range(len(self.groups)), [problem.groups[g] for g in self.groups], names)
        blocks = [
            _Link(problem, [o for o, _ in keys], block.options, names)
            for block, keys in zip(problem.blocks, self.keys, strict=True)
        ]
        own = [
            np.array([known[key] for key in keys]) for known, keys in zip(self.bounds.choices, self.keys, strict=True)
        ]
        stage = np.array([self.bounds.groups[g] for g in self.groups])
        to_first = _after(own[0], blocks[0], stages)
        to_last = _through(to_first, stage)
        to_head = _after(to_last, stages, blocks[1]) + own[1]
        after_head = np.zeros(len(own[1]))
        if len(blocks) > 2:
            after_head = _before(own[2], blocks[2], blocks[1])
        after_last = _before(own[1] + after_head, blocks[1], stages)
        after_first = _through(after_last, stage)
        found = [own[0] + _before(after_first, stages, blocks[0]), to_head + after_head]
        if len(blocks) > 2:
            found.append(own[2] + _after(to_head, blocks[1], blocks[2]))
        ways = float(to_first.min() + after_last.min())
        return Excess(
            least=self.bounds.least,
            groups=dict(zip(self.groups, (stage + ways).tolist(), strict=True)),
            choices=tuple(
                dict(zip(keys, each.tolist(), strict=True)) for keys, each in zip(self.keys, found, strict=True)
            ),
        )


def _through(ends: Curve, stage: Curve) -> Curve:
    """From one end of the stages to the other: they take what the dearer of the two ends takes, at least."""
    order = np.argsort(stage, kind="stable")
    cheaper = np.minimum.accumulate(ends[order]) + stage[order]
    dearer = np.minimum.accumulate((ends + stage)[order][::-1])[::-1]
    found = np.empty(len(stage))
    found[order] = np.minimum(cheaper, dearer)
    return found


def _after(costs: Curve, sources: _Link, targets: _Link) -> Curve:
    """The least with which each target is reached."""
    least = sources.least(costs)
    by_leader = np.full(targets.more.shape[1], math.inf)
    np.minimum.at(by_leader, sources.leader, least)
    same = np.full(max(sources.devices.max(), targets.devices.max()) + 1, math.inf)
    np.minimum.at(same, sources.devices, least)
    found: Curve = np.minimum((targets.more + by_leader).min(1), same[targets.devices])[targets.of]
    return found


def _before(costs: Curve, targets: _Link, sources: _Link) -> Curve:
    """The least that comes after each source."""
    least = targets.least(costs)
    by_leader = (targets.more + least[:, None]).min(0)
    same = np.full(max(sources.devices.max(), targets.devices.max()) + 1, math.inf)
    np.minimum.at(same, targets.devices, least)
    found: Curve = np.minimum(by_leader[sources.leader], same[sources.devices])[sources.of]
    return found


# ---- one stage ----


class _Stage:
    """The linear programme of a stage on one group."""

    def __init__(self, problem: Problem, group: Group, prices: Curve) -> None:
        ((self.columns,), (self.kind,)) = (group.columns, problem.kinds)
        self.paid = prices[list(group.devices)]
        self.once = np.array(group.stage_bytes, dtype=np.float64)
        self.layers = problem.layers
        self.quantum_ns = problem.quantum_ns
        self.unit_ps = [self.kind.unit_ps[d] for d in group.devices]
        self.rates = _rates_ns(self.unit_ps)
        self.room = np.array(
            [float(problem.capacity_bytes[d] - n) for d, n in zip(group.devices, group.stage_bytes, strict=True)]
        )
        self.ns = np.array([float(column.ns) for column in self.columns])
        self.bytes = np.array([column.bytes for column in self.columns], dtype=np.float64)
        self.lines: list[tuple[float, float]] = []
        self.most = self.layers if len(self.columns) else 0

    def curve(self) -> Curve:
        """Least time of every number of layers."""
        if self.most and (self.room < 0).any():
            self.most = 0
        if self.most:
            self._limit(np.ones(len(self.room)))
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

    def _whole(self, values: Curve) -> Curve:
        """The same in whole quanta and whole units, of which memory is the lines' business."""
        counts = range(1, self.most + 1)
        least_ns = min(column.ns for column in self.columns)
        units = tuple(count * self.kind.units for count in counts)
        quanta = np.array(_least_quanta(units, tuple(sorted(self.unit_ps)), self.quantum_ns))
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
        column = float((self.ns + self.bytes @ prices).min())
        units = self.kind.units * _least_each(self.rates, prices * self.kind.unit_bytes)
        return column + units, float(self.paid @ self.once) - float((prices - self.paid) @ self.room)

    def _search(self) -> None:
        """Lines at the ends, then where two meet below the programme's value."""
        self.lines.append(self._line(self.paid))
        programme = _Programme(self)
        weights = programme.most_layers()
        if weights is not None:
            self._limit(weights)
        if not self.most:
            return
        points = [float(self.most)]
        while points and len(self.lines) < MOST_LINES:
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

    def __init__(self, stage: _Stage) -> None:
        self.solver = solver = pywraplp.Solver.CreateSolver("GLOP")
        self.scale = max(1.0, float(stage.room.max()))
        members = range(len(stage.room))
        self.columns = [solver.NumVar(0, solver.infinity(), "") for _ in stage.columns]
        self.units = [solver.NumVar(0, solver.infinity(), "") for _ in members]
        self.time = solver.NumVar(0, solver.infinity(), "")
        self.total = solver.RowConstraint(0, 0, "")
        units = solver.RowConstraint(0, 0, "")
        for column in self.columns:
            self.total.SetCoefficient(column, 1)
            units.SetCoefficient(column, stage.kind.units)
        self.rooms = []
        for j in members:
            units.SetCoefficient(self.units[j], -1)
            slowest = solver.RowConstraint(-solver.infinity(), 0, "")
            slowest.SetCoefficient(self.units[j], stage.rates[j])
            slowest.SetCoefficient(self.time, -1)
            room = solver.RowConstraint(-solver.infinity(), stage.room[j] / self.scale, "")
            room.SetCoefficient(self.units[j], stage.kind.unit_bytes / self.scale)
            for column, nbytes in zip(self.columns, stage.bytes[:, j], strict=True):
                room.SetCoefficient(column, nbytes / self.scale)
            self.rooms.append(room)
        self.ns = stage.ns

    def _duals(self) -> Curve:
        duals = np.array([room.dual_value() for room in self.rooms], dtype=np.float64)
        prices: Curve = np.maximum(0, -duals) / self.scale
        return prices

    def most_layers(self) -> Curve | None:
        """Weights of memory under which the most layers that fit are fewest."""
        solver = self.solver
        self.total.SetBounds(0, solver.infinity())
        solver.Objective().Clear()
        for column in self.columns:
            solver.Objective().SetCoefficient(column, -1)
        solver.Objective().SetMinimization()
        return self._duals() if solver.Solve() == solver.OPTIMAL else None

    def prices(self, layers: float) -> Curve | None:
        """Duals of memory for so many layers."""
        solver = self.solver
        self.total.SetBounds(layers, layers)
        solver.Objective().Clear()
        for column, ns in zip(self.columns, self.ns, strict=True):
            solver.Objective().SetCoefficient(column, float(ns))
        solver.Objective().SetCoefficient(self.time, 1)
        solver.Objective().SetMinimization()
        return self._duals() if solver.Solve() == solver.OPTIMAL else None


# ---- stages together ----


HOP, NETWORK, FIRST = range(3)
"""How stages of a place are reached: none has entered it yet; one has, over the network; one has, as the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Signature:
    """What matters of a group: two of a host with equal ones have equal bounds."""

    taken: tuple[int, ...]
    """Devices of each class of the host."""
    columns: int
    """Their number: equal columns have the same."""
    room: tuple[int, ...]
    unit_ps: tuple[int, ...]
    paid: tuple[float, ...]
    modes: tuple[int, int, int]
    """ns of entering, by HOP, NETWORK, FIRST."""


def _plus(one: Curve, other: Curve) -> Curve:
    """Least sums over all ways to divide a number of layers; ``one`` may have leading axes."""
    return _plus_all(one, _shifts(other))


def _shifts(curve: Curve) -> Curve:
    """[n, m]: the curve at n - m."""
    size = len(curve)
    padded = np.concatenate([np.full(size - 1, math.inf), curve])
    shifts: Curve = np.lib.stride_tricks.sliding_window_view(padded, size)[:, ::-1]
    return shifts


def _plus_all(one: Curve, shifts: Curve) -> Curve:
    sums: Curve = (one[..., None, :] + shifts).min(axis=-1)
    return sums


class _Places:
    """Every way to deal the devices of each place out into groups, and the places put together."""

    def __init__(self, problem: Problem, prices: Curve) -> None:
        self.problem = problem
        self.prices = prices
        self.hosts = len(problem.hosts)
        self.layers = problem.layers
        self.classes = [sorted({problem.alike[d] for d in devices}) for devices in problem.hosts]
        self.counts = [
            tuple(sum(problem.alike[d] == each for d in devices) for each in classes)
            for devices, classes in zip(problem.hosts, self.classes, strict=True)
        ]
        self.known: dict[tuple[Column, ...], int] = {}
        self.numbers: dict[int, int] = {}
        self.inside = [self._signatures(host) for host in range(self.hosts)]
        self.wide = [i for i, group in enumerate(problem.groups) if group.place >= self.hosts]

    @property
    def most_states(self) -> int:
        return max(math.prod(count + 1 for count in counts) for counts in self.counts)

    def _taken(self, group: Group, host: int) -> tuple[int, ...]:
        """How many devices of each class of a host a group has."""
        here = [self.problem.alike[d] for d in group.devices if d in self.problem.hosts[host]]
        return tuple(here.count(each) for each in self.classes[host])

    def _signatures(self, host: int) -> dict["_Signature", list[int]]:
        """Groups of a host, by what matters here."""
        found: dict[_Signature, list[int]] = {}
        for index, group in enumerate(self.problem.groups):
            if group.place == host:
                found.setdefault(self._signature(group, self._taken(group, host)), []).append(index)
        return found

    def _signature(self, group: Group, taken: tuple[int, ...]) -> "_Signature":
        problem = self.problem
        capacity, (kind,) = problem.capacity_bytes, problem.kinds
        inside = group.place < self.hosts and len(group.devices) > 1
        message = problem.message_ns[group.place] if inside else 0
        return _Signature(
            taken=taken,
            columns=self._number(group.columns[0]),
            room=tuple(capacity[d] - n for d, n in zip(group.devices, group.stage_bytes, strict=True)),
            unit_ps=tuple(kind.unit_ps[d] for d in group.devices),
            paid=tuple(float(self.prices[d]) for d in group.devices),
            modes=(
                group.hop_ns,
                group.network_hop_ns + message + problem.network_message_ns,
                group.first.same_ns + message,
            ),
        )

    def _number(self, columns: tuple[Column, ...]) -> int:
        """Of equal columns: columns are long to compare, and most groups of a look have the same object."""
        if id(columns) not in self.numbers:
            self.numbers[id(columns)] = self.known.setdefault(columns, len(self.known))
        return self.numbers[id(columns)]

    @cached_property
    def curves(self) -> dict[int, Curve]:
        """Of each group; equal ones are computed once."""
        known: dict[tuple[object, ...], Curve] = {}
        found = {}
        for index, group in enumerate(self.problem.groups):
            signature = self._signature(group, ())
            key = (signature.columns, signature.room, signature.unit_ps, signature.paid)
            if key not in known:
                known[key] = _Stage(self.problem, group, self.prices).curve()
            found[index] = known[key]
        return found

    @cached_property
    def tables(self) -> list["_Table"]:
        """Of each host; equal ones are computed once."""
        known: dict[tuple[object, ...], _Table] = {}
        found = []
        for host, signatures in enumerate(self.inside):
            key = (self.counts[host], tuple(signatures))
            if key not in known:
                priced = [(each, self.curves[members[0]]) for each, members in signatures.items()]
                known[key] = _Table(self.counts[host], priced, self.layers)
            found.append(known[key])
        return found

    def through_groups(self) -> list[float]:
        """The least time of the stages of any answer with each group.

        Groups over several hosts are few or bad, as the network is slow: the bad ones are not gone into any further
        than their own bound, which then bounds every answer that has one.
        """
        bounds = [math.inf] * len(self.problem.groups)
        self._with_wide(None, (), bounds)
        anywhere = self._any_wide()
        for wide in self.wide:
            bounds[wide] = self._through_wide(wide, anywhere)
        limit = FAR * min(bounds)
        near = [wide for wide in self.wide if bounds[wide] <= limit]
        floor = min((bounds[wide] for wide in self.wide if bounds[wide] > limit), default=math.inf)
        for wide in near:
            bounds[wide] = math.inf
        for wide in near:
            self._with_wide(wide, near, bounds)
        return [min(bound, max(floor, limit)) if math.isfinite(floor) else bound for bound in bounds]

    def _left(self, wide: int) -> list[tuple[int, ...]]:
        """Devices of each class of each host beside those of a group."""
        group = self.problem.groups[wide]
        return [_less(self.counts[host], self._taken(group, host)) for host in range(self.hosts)]

    def _any_wide(self) -> Curve:
        """The place of any groups over several hosts, as often as one likes."""
        found = np.full((3, self.layers + 1), math.inf)
        found[HOP, 0] = 0
        for wide in self.wide:
            found = np.minimum(found, self._alone(wide))
        several = np.minimum(found[NETWORK], found[HOP])
        for _ in range(len(self.problem.devices).bit_length()):
            several = np.minimum(several, _plus(several, several))
        found[NETWORK] = np.minimum(found[NETWORK], several)
        found[NETWORK, 0] = math.inf
        found[FIRST] = np.minimum(found[FIRST], _plus(found[FIRST], several))
        return found

    def _through_wide(self, wide: int, anywhere: Curve) -> float:
        """The same of a group over several hosts, as if other such groups took no devices."""
        parts = [table.place(rest) for table, rest in zip(self.tables, self._left(wide), strict=True)]
        around = _nowhere(self.layers)
        for part in (*parts, anywhere):
            around = _with_place(around, part)
        return _closed(self._alone(wide), around)

    def _with_wide(self, wide: int | None, near: Sequence[int], bounds: list[float]) -> None:
        """Lower ``bounds`` to the least of the answers in which this group over several hosts runs, or none does."""
        problem = self.problem
        left = list(self.counts) if wide is None else self._left(wide)
        parts = [table.place(rest) for table, rest in zip(self.tables, left, strict=True)]
        if wide is not None:
            parts.append(self._alone(wide))
            mine = set(problem.groups[wide].devices)
            for other in near:
                if not mine & set(problem.groups[other].devices):
                    part = self._alone(other)
                    part[HOP, 0] = 0
                    parts.append(part)
        around = _all_but_each(parts, self.layers)
        if wide is not None:
            bounds[wide] = min(bounds[wide], _closed(parts[self.hosts], around[self.hosts]))
        for host in range(self.hosts):
            for signature, members in self.inside[host].items():
                rest = _less(left[host], signature.taken)
                if min(rest) < 0:
                    continue
                part = self.tables[host].with_group(rest, self.curves[members[0]], signature.modes)
                value = _closed(part, around[host])
                for index in members:
                    bounds[index] = min(bounds[index], value)

    def _alone(self, wide: int) -> Curve:
        """The place of a group over several hosts, entered.

        Its hosts may be other places' too, which pay for messages to them: it pays itself only where it is all there
        is. Of the hosts that are reached over the network, the one that the message comes from pays nothing.
        """
        problem = self.problem
        group, curve = problem.groups[wide], self.curves[wide]
        first = curve + (group.first.same_ns - problem.network_message_ns)
        members = [len(set(group.devices) & set(devices)) for devices in problem.hosts]
        several = sum(ns for ns, count in zip(problem.message_ns, members, strict=True) if count > 1)
        reached = sum(count > 0 for count in members)
        first[-1] += several + reached * problem.network_message_ns
        return np.stack([np.full_like(curve, math.inf), curve + group.network_hop_ns, first])


def _less(counts: tuple[int, ...], taken: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(count - each for count, each in zip(counts, taken, strict=True))


def _nowhere(layers: int) -> Curve:
    """No place: no layers, and no first stage."""
    found = np.full((2, layers + 1), math.inf)
    found[0, 0] = 0
    return found


def _all_but_each(parts: Sequence[Curve], layers: int) -> list[Curve]:
    """For each place, all the others together: [whether the first stage is among them, layers]."""
    before, after = [_nowhere(layers)], [_nowhere(layers)]
    for part in parts[:-1]:
        before.append(_with_place(before[-1], part))
    for part in reversed(parts[1:]):
        after.append(_with_place(after[-1], part))
    return [_with_rest(one, other) for one, other in zip(before, reversed(after), strict=True)]


def _with_place(rest: Curve, part: Curve) -> Curve:
    """One more place: not entered (only with no layers), entered over the network, or the one where all begins."""
    idle = rest + part[HOP, 0] if math.isfinite(part[HOP, 0]) else np.full_like(rest, math.inf)
    found = np.minimum(idle, _plus(rest, part[NETWORK]))
    found[1] = np.minimum(found[1], _plus(rest[0], part[FIRST]))
    return found


def _with_rest(one: Curve, other: Curve) -> Curve:
    return np.stack([_plus(one[0], other[0]), np.minimum(_plus(one[1], other[0]), _plus(one[0], other[1]))])


def _closed(part: Curve, around: Curve) -> float:
    """All layers, the first stage in exactly one place."""
    ours = (around[0] + part[FIRST][::-1]).min()
    theirs = (around[1] + part[NETWORK][::-1]).min()
    return float(min(ours, theirs))


class _Table:
    """Of one host, for any devices that are left of each class: least times with them.

    Axes: state (how many devices of each class may be used), mode, layers.
    """

    def __init__(self, counts: tuple[int, ...], groups: Sequence[tuple[_Signature, Curve]], layers: int) -> None:
        shape = tuple(count + 1 for count in counts)
        self.best = np.full((*shape, 3, layers + 1), math.inf)
        self.best[..., HOP, 0] = 0
        for signature, curve in groups:
            shifts = np.ascontiguousarray(_shifts(curve))
            rest = tuple(size - taken for size, taken in zip(shape, signature.taken, strict=True))
            for before in product(*map(range, rest)):  # ascending: a group may come again with what it has left
                state = tuple(a + b for a, b in zip(before, signature.taken, strict=True))
                grown = _grown(_plus_all(self.best[before], shifts), signature.modes)
                np.minimum(self.best[state], grown, out=self.best[state])

    def place(self, left: tuple[int, ...]) -> Curve:
        """With at most the devices left; a place that is not entered has no layers."""
        found: Curve = self.best[left].copy()
        found[HOP, 1:] = math.inf
        return found

    def with_group(self, rest: tuple[int, ...], curve: Curve, modes: tuple[int, int, int]) -> Curve:
        """With a group, and at most the devices left of the others."""
        found = _grown(_plus(self.best[rest], curve), modes)
        found[HOP] = math.inf
        return found


def _grown(stages: Curve, modes: tuple[int, int, int]) -> Curve:
    """One stage more, without its entry, to with it: in a place that has been entered, or entering it."""
    found = stages + modes[HOP]
    for mode in (NETWORK, FIRST):
        found[mode] = np.minimum(found[mode], stages[HOP] + modes[mode])
    return found
