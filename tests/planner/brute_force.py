"""Every answer of a tiny Problem, priced in the plainest way: what the solver and the certificate are held against.

Nothing here knows of the solver or of :mod:`planner.solver.certify`. A part of an answer (a stage, a block's axis) is
a row: the load of each device, then the cost. Parts are combined by adding their rows, and of all rows that a part may
have, its *front*, those are enough for which no other is as small in every number.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from planner.solver.problem import Axis, Block, Group, Option, Problem, Receive, Split, granule_bytes

Front = NDArray[np.int64]
"""Rows of one load per device and a cost, (n, devices + 1)."""
Value = tuple[int, ...]
"""Values of the goal, then the step time, then the number of stages; less is better."""


def best(problem: Problem) -> Value | None:
    """Return the least value of any feasible answer; None where there is none."""
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
    """Yield every way to write ``total`` as ``parts`` numbers, zeros allowed; one part at least."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in divisions(total - first, parts - 1):
            yield (first, *rest)


def may_follow(problem: Problem, sequence: tuple[int, ...], index: int) -> bool:
    """Tell whether a group may run the stage after the stages of ``sequence``."""
    group, before = problem.groups[index], [problem.groups[other] for other in sequence]
    if any(set(group.devices) & set(other.devices) for other in before):
        return False
    if before and group.site != before[-1].site and group.site in {other.site for other in before}:
        return False
    return not (problem.ordered and sequence and index < sequence[-1])


def host_of(hosts: tuple[tuple[int, ...], ...], device: int) -> int:
    return next(h for h, devices in enumerate(hosts) if device in devices)


def receive_ns(problem: Problem, cost: Receive, sender: Sequence[int], to: Group | Option) -> int:
    """Receiving from the leader of ``sender``."""
    if sender == to.devices:
        return cost.same_ns
    if sender[0] in to.devices:
        return cost.inside_ns
    places = (to.site,) if isinstance(to, Group) else to.sites
    return cost.near_ns if host_of(problem.hosts, sender[0]) in places else cost.far_ns


def slowest_ns(problem: Problem, counts: Sequence[int], devices: Sequence[int], each_ps: Sequence[int]) -> int:
    """The longest of the shares, rounded up to whole quanta."""
    longest = max(count * each_ps[device] for count, device in zip(counts, devices, strict=True))
    return -(-longest // (problem.quantum_ns * 1000)) * problem.quantum_ns


def messages_ns(problem: Problem, used: Iterable[int]) -> int:
    counts = [len(set(used) & set(devices)) for devices in problem.hosts]
    inside = sum(ns for ns, count in zip(problem.message_ns, counts, strict=True) if count >= 2)
    return inside + (len([count for count in counts if count]) - 1) * problem.network_message_ns


@dataclass(frozen=True)
class _Route:
    """All that blocks, messages and goals ask about the stages."""

    first: int
    last: int
    stages: int
    used: frozenset[int]
    layers: tuple[int, ...]
    """Layers of each group, where the goal asks."""


@dataclass(frozen=True)
class _Search:
    problem: Problem

    def best(self) -> Value | None:
        least: Value | None = None
        blocks = [(chosen, front) for chosen in self._choices() if len(front := self._blocks(chosen))]
        pairs = [
            (self._least(route, chosen, stages, others), route, chosen, stages, others)
            for route, stages in self._routes().items()
            for chosen, others in blocks
        ]
        for bound, route, chosen, stages, others in sorted(pairs, key=lambda pair: pair[0]):
            if least is not None and bound >= least:
                break
            rows = self._fitting(self._pairs(stages, others))
            if len(rows):
                value = self._cheapest(route, chosen, rows)
                least = value if least is None else min(least, value)
        return least

    # ---- the whole ----

    def _least(self, route: _Route, chosen: tuple[Option, ...], stages: Front, others: Front) -> Value:
        """No answer of these is better."""
        return self._cheapest(route, chosen, (stages.min(axis=0) + others.min(axis=0))[None])

    def _cheapest(self, route: _Route, chosen: tuple[Option, ...], rows: Front) -> Value:
        problem = self.problem
        step = self._between(route, chosen)
        if problem.goal != "balance":
            rows = rows[[rows[:, -1].argmin()]]
        values = ((*goal_value(problem, row[:-1], route.layers), step + row[-1], route.stages) for row in rows.tolist())
        return min(values)

    def _between(self, route: _Route, chosen: tuple[Option, ...]) -> int:
        """Return the time of receiving and of messages."""
        problem = self.problem
        start, end = problem.groups[route.first], problem.groups[route.last]
        total = receive_ns(problem, start.first, chosen[0].devices, start)
        chain = (end.devices, *(option.devices for option in chosen[1:]))
        for sender, option in zip(chain, chosen[1:], strict=False):
            total += receive_ns(problem, option.receive, sender, option)
        used = route.used.union(*(option.devices for option in chosen))
        return total + messages_ns(problem, used)

    # ---- stages ----

    @cached_property
    def _kinds(self) -> list[int]:
        """Kind of each layer."""
        return [kind for kind, count in self.problem.sequence for _ in range(count)]

    def _routes(self) -> dict[_Route, Front]:
        fronts: dict[_Route, list[Front]] = {}
        for stages, front in self._grown((), 0, self._nothing):
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

    def _grown(
        self, stages: tuple[tuple[int, int], ...], start: int, front: Front
    ) -> Iterator[tuple[tuple[tuple[int, int], ...], Front]]:
        """Every (group, number of layers) of each stage that goes on from here, with what all of it takes."""
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
                grown = self._both(front, self._stage(index, self._kinds[start : start + count]))
                if len(grown):
                    grown[:, -1] += hop
                    yield from self._grown((*stages, (index, count)), start + count, grown)

    def _hop(self, before: int, index: int) -> int:
        here = self.problem.groups[index]
        return here.hop_ns if self.problem.groups[before].site == here.site else here.network_hop_ns

    def _stage(self, index: int, kinds: list[int]) -> Front:
        """These layers on one group: every mixture of splits, every division of units."""
        group = self.problem.groups[index]
        key = (index, *sorted(kinds))
        if key not in self._stage_fronts:
            front = self._once(group.devices, group.stage_bytes, 0)
            for kind in sorted(set(kinds)):
                front = self._both(front, self._splits(group, kind, kinds.count(kind)))
                front = self._both(front, self._units(group, kind, kinds.count(kind)))
            self._stage_fronts[key] = front
        return self._stage_fronts[key]

    @cached_property
    def _stage_fronts(self) -> dict[tuple[int, ...], Front]:
        return {}

    def _splits(self, group: Group, kind: int, layers: int) -> Front:
        splits = group.splits[kind]
        if not splits:
            return self._nothing[:0]
        rows = []
        for counts in divisions(layers, len(splits)):
            cost = sum(n * split.ns for n, split in zip(counts, splits, strict=True))
            cost += -cost % self.problem.quantum_ns
            loads = np.array(counts) @ np.array([split.bytes for split in splits])
            rows.append(self._once(group.devices, loads.tolist(), cost))
        return self._fitting(np.concatenate(rows))

    def _units(self, group: Group, kind: int, layers: int) -> Front:
        alike = self.problem.kinds[kind]
        return self._dealt(group.devices, layers * alike.units, alike.unit_bytes, [alike.unit_ps])

    # ---- blocks ----

    def _choices(self) -> Iterator[tuple[Option, ...]]:
        """An option of each block."""
        return product(*(block.options for block in self.problem.blocks))

    def _blocks(self, chosen: tuple[Option, ...]) -> Front:
        """Every division of the blocks on these options."""
        front = self._nothing
        blocks: list[Block] = list(self.problem.blocks)
        sharing: dict[tuple[int, int], list[Axis]] = {}
        for b, (block, option) in enumerate(zip(blocks, chosen, strict=True)):
            front = self._both(front, self._whole(option.devices, option.splits))
            for a, axis in enumerate(block.axes):
                sharing.setdefault(self._owner(chosen, b, a), []).append(axis)
        for (b, _), axes in sharing.items():
            rates = [axis.each_ps for axis in axes]
            front = self._both(front, self._dealt(chosen[b].devices, axes[0].count, axes[0].each_bytes, rates))
        return front

    def _owner(self, chosen: tuple[Option, ...], b: int, a: int) -> tuple[int, int]:
        """(block, axis) that says how this axis is divided."""
        shared = list(self.problem.blocks)[b].axes[a].shared
        if shared is None:
            return b, a
        other = ("first", "last").index(shared)
        return self._owner(chosen, other, 0) if chosen[other].devices == chosen[b].devices else (b, a)

    def _whole(self, devices: Sequence[int], splits: Sequence[Split]) -> Front:
        return self._fitting(np.concatenate([self._once(devices, split.bytes, split.ns) for split in splits]))

    # ---- fronts ----

    @cached_property
    def _nothing(self) -> Front:
        return np.zeros((1, len(self.problem.devices) + 1), dtype=np.int64)

    def _once(self, devices: Sequence[int], nbytes: Sequence[int], cost: int) -> Front:
        row = self._nothing.copy()
        row[0, list(devices)] = nbytes
        row[0, -1] = cost
        return row

    def _dealt(self, devices: Sequence[int], count: int, nbytes: int, rates: Sequence[Sequence[int]]) -> Front:
        """Every division of equal pieces, which costs the time of its slowest share once for each of ``rates``."""
        rows = []
        for shares in divisions(count, len(devices)):
            cost = sum(slowest_ns(self.problem, shares, devices, each_ps) for each_ps in rates)
            rows.append(self._once(devices, [n * nbytes for n in shares], cost))
        return self._fitting(np.concatenate(rows))

    def _pairs(self, one: Front, other: Front) -> Front:
        return (one[:, None] + other[None]).reshape(-1, len(self.problem.devices) + 1)

    def _both(self, one: Front, other: Front) -> Front:
        """One part of each, where the two fit together."""
        return self._fitting(self._pairs(one, other))

    def _fitting(self, front: Front) -> Front:
        return _undominated(front[(front[:, :-1] <= self.problem.capacity_bytes).all(axis=1)])


def _undominated(front: Front) -> Front:
    """Without the rows that have another, or an equal one before, that is as small in every number."""
    front = front[np.argsort(front.sum(axis=1), kind="stable")]
    position = 0
    while position < len(front):
        rest = front[position + 1 :]
        worse = (front[position] <= rest).all(axis=1)
        if worse.any():
            front = np.concatenate([front[: position + 1], rest[~worse]])
        position += 1
    return front
