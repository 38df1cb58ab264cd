"""Brute force over all answers of a tiny Problem: the reference for the solver and the certificate.

Shares no code with the solver or :mod:`planner.solver.certify`. A part of an answer (a stage, a block's axis) is a row:
the load of each device, then the cost. Parts are combined by adding their rows. Of all possible rows of a part only the
Pareto front is kept: rows that no other row equals or undercuts in every number.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from planner.solver.problem import Axis, Block, Group, Option, Problem, Receive, Split, granule_bytes

Front = NDArray[np.int64]
"""Rows of one load per device and a cost, shape (n, devices + 1)."""
Value = tuple[int, ...]
"""Values of the goal, then the step time, then the number of stages; less is better."""


def best(problem: Problem) -> Value | None:
    """Return the least value of any feasible answer, or None if no answer is feasible."""
    return _Search(problem).best()


def goal_value(problem: Problem, load_bytes: Sequence[int], layers: Sequence[int]) -> Value:
    """Return the values of the goal, less is better, from the load per device and the layers per group."""
    granule = granule_bytes(problem)
    free = [capacity - load for capacity, load in zip(problem.capacity_bytes, load_bytes, strict=True)]
    if problem.goal == "balance":
        spare = problem.spare
        others = min(nbytes // granule for d, nbytes in enumerate(free) if d != spare)
        return (-others,) if spare is None else (-(-load_bytes[spare] // granule), -others)
    return tuple(-count for count in layers) if problem.goal == "fill" else ()


def divisions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield every tuple of ``parts`` >= 1 non-negative integers whose sum is ``total``."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in divisions(total - first, parts - 1):
            yield (first, *rest)


def may_follow(problem: Problem, sequence: tuple[int, ...], index: int) -> bool:
    """Return whether a group may run the stage after the stages of ``sequence``."""
    group, before = problem.groups[index], [problem.groups[other] for other in sequence]
    if any(set(group.devices) & set(other.devices) for other in before):
        return False
    if before and group.site != before[-1].site and group.site in {other.site for other in before}:
        return False
    return not (problem.ordered and sequence and index < sequence[-1])


def host_of(hosts: tuple[tuple[int, ...], ...], device: int) -> int:
    return next(h for h, devices in enumerate(hosts) if device in devices)


def receive_ns(problem: Problem, cost: Receive, sender: Sequence[int], to: Group | Option) -> int:
    """Return the time to receive from the leader, the first device, of ``sender``."""
    if sender == to.devices:
        return cost.same_ns
    if sender[0] in to.devices:
        return cost.inside_ns
    sites = (to.site,) if isinstance(to, Group) else to.sites
    return cost.near_ns if host_of(problem.hosts, sender[0]) in sites else cost.far_ns


def member_ps(over: Group | Option, index: int, alone_ps: Sequence[int]) -> Sequence[int]:
    """Return the time of a piece per member, where all of them compute at once; ``index``: of the kind or axis."""
    return [alone_ps[device] for device in over.devices] if over.slowed_ps is None else over.slowed_ps[index]


def slowest_ns(over: Group | Option, counts: Sequence[int], member_ps: Sequence[int]) -> int:
    """Return the time of the slowest member, rounded up to whole quanta."""
    longest = max(count * ps for count, ps in zip(counts, member_ps, strict=True))
    return -(-longest // (over.quantum_ns * 1000)) * over.quantum_ns


def messages_ns(problem: Problem, used: Iterable[int], *, awake: bool) -> int:
    """Return the time of the step message; ``awake``: to devices that are."""
    counts = [len(set(used) & set(devices)) for devices in problem.hosts]
    inside = sum(
        ns * sum(count > known for known in (1, 2, 4, 8))
        if awake_ns is None
        else (awake_ns if awake else ns + (waits_ns[count - 1] if waits_ns else 0)) * (count > 1)
        for ns, awake_ns, waits_ns, count in zip(
            problem.message_ns, problem.awake_ns, problem.waits_ns, counts, strict=True
        )
    )
    return inside + (len([count for count in counts if count]) - 1) * problem.network_message_ns


@dataclass(frozen=True)
class _Route:
    """The facts about the stages on which the cost of blocks, messages and goals depends."""

    first: int
    last: int
    stages: int
    used: frozenset[int]
    layers: tuple[int, ...]
    """Layers per group if the goal is ``fill``, else empty."""


@dataclass(frozen=True)
class _Search:
    problem: Problem

    def best(self) -> Value | None:
        least: Value | None = None
        blocks = [
            (chosen, front, front.min(axis=0))
            for chosen in self._option_combinations()
            if len(front := self._blocks(chosen))
        ]
        # with a lower bound of the values of all answers with these stages and options
        pairs = [
            (self._cheapest(route, chosen, (least_stages + least_others)[None]), route, chosen, stages, others)
            for route, stages in self._routes().items()
            for least_stages in [stages.min(axis=0)]
            for chosen, others, least_others in blocks
        ]
        for bound, route, chosen, stages, others in sorted(pairs, key=lambda pair: pair[0]):
            if least is not None and bound >= least:
                break
            rows = self._within_capacity(self._pairs(stages, others))
            if len(rows):
                value = self._cheapest(route, chosen, rows)
                least = value if least is None else min(least, value)
        return least

    # ---- the whole ----

    def _cheapest(self, route: _Route, chosen: tuple[Option, ...], rows: Front) -> Value:
        """Return the least value of the rows, which have these stages and options."""
        problem = self.problem
        *load_bytes, cost = rows[self._cheapest_row(rows)].tolist()
        step = self._transfers_ns(route, chosen) + cost
        return (*goal_value(problem, load_bytes, route.layers), step, route.stages)

    def _cheapest_row(self, rows: Front) -> np.intp:
        """Return the index of the row with the least values of the goal, and of those with the least cost."""
        if self.problem.goal != "balance":
            return rows[:, -1].argmin()
        granule, spare = granule_bytes(self.problem), self.problem.spare
        free = self.problem.capacity_bytes - rows[:, :-1]
        others = free if spare is None else np.delete(free, spare, axis=1)
        keys = [rows[:, -1], -(others.min(axis=1) // granule)]
        keys += [] if spare is None else [-(-rows[:, spare] // granule)]
        return np.lexsort(keys)[0]

    def _transfers_ns(self, route: _Route, chosen: tuple[Option, ...]) -> int:
        """Return the time of transfers between parts and of step messages."""
        problem = self.problem
        start, end = problem.groups[route.first], problem.groups[route.last]
        total = receive_ns(problem, start.first, chosen[0].devices, start)
        chain = (end.devices, *(option.devices for option in chosen[1:]))
        for sender, option in zip(chain, chosen[1:], strict=False):
            total += receive_ns(problem, option.receive, sender, option)
        used = route.used.union(*(option.devices for option in chosen))
        return total + messages_ns(problem, used, awake=used <= set(chosen[-1].devices))

    # ---- stages ----

    @cached_property
    def _kinds(self) -> list[int]:
        """The kind of each layer, in execution order."""
        return [kind for kind, count in self.problem.sequence for _ in range(count)]

    def _routes(self) -> dict[_Route, Front]:
        fronts: dict[_Route, list[Front]] = {}
        for stages, front in self._completions((), 0, self._empty_row):
            fronts.setdefault(self._route(stages), []).append(front)
        return {route: _undominated(np.concatenate(parts)) for route, parts in fronts.items()}

    def _route(self, stages: tuple[tuple[int, int], ...]) -> _Route:
        layers = [0] * len(self.problem.groups)
        for index, count in stages:
            layers[index] = count
        return _Route(
            first=stages[0][0],
            last=stages[-1][0],
            stages=len(stages),
            used=frozenset(device for index, _ in stages for device in self.problem.groups[index].devices),
            layers=tuple(layers) if self.problem.goal == "fill" else (),
        )

    def _completions(
        self, stages: tuple[tuple[int, int], ...], start: int, front: Front
    ) -> Iterator[tuple[tuple[tuple[int, int], ...], Front]]:
        """Yield every completion of ``stages`` from layer ``start`` as (group, layers) pairs with the front of all."""
        problem = self.problem
        if start == problem.layers:
            yield stages, front
            return
        for index in range(len(problem.groups)):
            if not may_follow(problem, tuple(number for number, _ in stages), index):
                continue
            hop = self._hop(stages[-1][0], index) if stages else 0
            for count in range(1, problem.layers - start + 1):
                if problem.counts is not None and problem.counts[index] != count:
                    continue
                grown = self._combined(front, self._stage(index, self._kinds[start : start + count]))
                if len(grown):
                    grown[:, -1] += hop
                    yield from self._completions((*stages, (index, count)), start + count, grown)

    def _hop(self, before: int, index: int) -> int:
        group = self.problem.groups[index]
        return group.hop_ns if self.problem.groups[before].site == group.site else group.network_hop_ns

    def _stage(self, index: int, kinds: list[int]) -> Front:
        """Return the front of one group running these layers: all mixtures of splits, all divisions of units."""
        group = self.problem.groups[index]
        key = (index, *sorted(kinds))
        if key not in self._stage_fronts:
            front = self._row(group.devices, group.stage_bytes, 0)
            for kind in sorted(set(kinds)):
                front = self._combined(front, self._splits(group, kind, kinds.count(kind)))
                front = self._combined(front, self._units(group, kind, kinds.count(kind)))
            self._stage_fronts[key] = front
        return self._stage_fronts[key]

    @cached_property
    def _stage_fronts(self) -> dict[tuple[int, ...], Front]:
        return {}

    def _splits(self, group: Group, kind: int, layers: int) -> Front:
        splits = group.splits[kind]
        if not splits:
            return self._empty_row[:0]
        rows = []
        for counts in divisions(layers, len(splits)):
            cost = sum(n * split.ns for n, split in zip(counts, splits, strict=True))
            cost += -cost % group.quantum_ns
            loads = np.array(counts) @ np.array([split.bytes for split in splits])
            rows.append(self._row(group.devices, loads.tolist(), cost))
        return self._feasible(np.concatenate(rows))

    def _units(self, group: Group, kind: int, layers: int) -> Front:
        mlp = self.problem.kinds[kind]
        rates = member_ps(group, kind, mlp.unit_ps)
        front = self._unit_divisions(group, layers * mlp.units, [mlp.unit_bytes] * len(group.devices), [rates])
        whole = (
            max(n * ps for n, ps in zip(shares, rates, strict=True))
            for shares in divisions(mlp.units, len(group.devices))
        )
        quantum_ps = 1000 * group.quantum_ns
        front[:, -1] = np.maximum(front[:, -1], -(-layers * min(whole) // quantum_ps) * group.quantum_ns)
        return _undominated(front)

    # ---- blocks ----

    def _option_combinations(self) -> Iterator[tuple[Option, ...]]:
        """Yield one option per block, in all combinations."""
        return product(*(block.options for block in self.problem.blocks))

    def _blocks(self, chosen: tuple[Option, ...]) -> Front:
        """Return the front of all divisions of the blocks on these options."""
        front = self._empty_row
        blocks: list[Block] = list(self.problem.blocks)
        sharing: dict[tuple[int, int], list[tuple[Axis, Sequence[int]]]] = {}
        for b, (block, option) in enumerate(zip(blocks, chosen, strict=True)):
            front = self._combined(front, self._split_front(option.devices, option.splits))
            for a, axis in enumerate(block.axes):
                own = axis, member_ps(option, a, axis.each_ps)
                sharing.setdefault(self._owner(chosen, b, a), []).append(own)
        for (b, _), together in sharing.items():
            axes, rates = zip(*together, strict=True)
            read = [sum(axis.read_bytes[d] for axis in axes) for d in chosen[b].devices]
            lender = axes[0].shared and chosen[("first", "last").index(axes[0].shared)].devices
            held = [0 if lender == (d,) else axes[0].each_bytes for d in chosen[b].devices]
            nbytes = list(map(sum, zip(read, held, strict=True)))
            front = self._combined(front, self._unit_divisions(chosen[b], axes[0].count, nbytes, rates))
        return front

    def _owner(self, chosen: tuple[Option, ...], b: int, a: int) -> tuple[int, int]:
        """Return the (block, axis) whose shares this axis uses."""
        shared = list(self.problem.blocks)[b].axes[a].shared
        if shared is None:
            return b, a
        other = ("first", "last").index(shared)
        return self._owner(chosen, other, 0) if chosen[other].devices == chosen[b].devices else (b, a)

    def _split_front(self, devices: Sequence[int], splits: Sequence[Split]) -> Front:
        return self._feasible(np.concatenate([self._row(devices, split.bytes, split.ns) for split in splits]))

    # ---- fronts ----

    @cached_property
    def _empty_row(self) -> Front:
        return np.zeros((1, len(self.problem.devices) + 1), dtype=np.int64)

    def _row(self, devices: Sequence[int], nbytes: Sequence[int], cost: int) -> Front:
        row = self._empty_row.copy()
        row[0, list(devices)] = nbytes
        row[0, -1] = cost
        return row

    def _unit_divisions(
        self, over: Group | Option, count: int, nbytes: Sequence[int], rates: Sequence[Sequence[int]]
    ) -> Front:
        """Return the front of all divisions of equal pieces, of so many bytes on each device.

        The cost is the time of the slowest member, summed over ``rates``, each of which has one per member.
        """
        rows = []
        for shares in divisions(count, len(over.devices)):
            cost = sum(slowest_ns(over, shares, member) for member in rates)
            rows.append(self._row(over.devices, [n * each for n, each in zip(shares, nbytes, strict=True)], cost))
        return self._feasible(np.concatenate(rows))

    def _pairs(self, one: Front, other: Front) -> Front:
        return (one[:, None] + other[None]).reshape(-1, len(self.problem.devices) + 1)

    def _combined(self, one: Front, other: Front) -> Front:
        """Return the front of two parts combined, within the capacities."""
        return self._feasible(self._pairs(one, other))

    def _feasible(self, front: Front) -> Front:
        return _undominated(self._within_capacity(front))

    def _within_capacity(self, rows: Front) -> Front:
        return rows[(rows[:, :-1] <= self.problem.capacity_bytes).all(axis=1)]


def _undominated(front: Front) -> Front:
    """Drop rows that another row undercuts or equals in every number; of equal rows the first stays."""
    front = front[np.argsort(front.sum(axis=1), kind="stable")]
    position = 0
    while position < len(front):
        rest = front[position + 1 :]
        worse = (front[position] <= rest).all(axis=1)
        if worse.any():
            front = np.concatenate([front[: position + 1], rest[~worse]])
        position += 1
    return front
