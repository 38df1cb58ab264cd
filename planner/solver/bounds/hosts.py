"""Lower bounds of the time of all stages that have a given group among them.

A dynamic programme over all ways of dealing devices out into disjoint groups: over how many devices of each kind a
site has left, and how many layers. Messages are paid where a site is entered.
"""

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from planner.solver import limits
from planner.solver.bounds.combine import Sums
from planner.solver.bounds.stage import Curve, StageBound
from planner.solver.problem import Group, Problem, Split

HOP, NETWORK, FIRST = range(3)
"""How stages of a site are reached: none has entered it yet; one has, over the network; one has, as the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Signature:
    """What matters of a group: two of a host with equal ones have equal bounds."""

    taken: tuple[int, ...]
    """Devices of each class of the host."""
    splits: int
    """Their number: equal splits have the same."""
    room: tuple[int, ...]
    unit_ps: tuple[int, ...]
    paid: tuple[float, ...]
    modes: tuple[float, float, float]
    """ns of entering, by HOP, NETWORK, FIRST."""


def _classes(problem: Problem) -> list[list[int]]:
    """Of each host."""
    return [sorted({problem.alike[d] for d in devices}) for devices in problem.hosts]


def _counts(problem: Problem) -> list[tuple[int, ...]]:
    """How many devices each host has of each of its classes."""
    return [
        tuple(sum(problem.alike[d] == each for d in devices) for each in classes)
        for devices, classes in zip(problem.hosts, _classes(problem), strict=True)
    ]


def most_states(problem: Problem) -> int:
    """Of one site."""
    return max(math.prod(count + 1 for count in counts) for counts in _counts(problem))


class Stages:
    """Stages of the groups of a problem, at prices of memory; equal ones are looked at once."""

    def __init__(self, problem: Problem, prices: Curve) -> None:
        self.problem = problem
        self.prices = prices
        self.known: dict[tuple[Split, ...], int] = {}
        self.numbers: dict[int, int] = {}
        self.looks = self._looks()
        self.stages: dict[tuple[object, ...], StageBound] = {}

    def _looks(self) -> list[int]:
        """Of each device: of those that matter alike the same number."""
        problem, (kind,) = self.problem, self.problem.kinds
        numbers: dict[tuple[int, int, float], int] = {}
        looks = zip(problem.capacity_bytes, kind.unit_ps, self.prices.tolist(), strict=True)
        return [numbers.setdefault(look, len(numbers)) for look in looks]

    def look(self, group: Group) -> tuple[object, ...]:
        """What matters for the time of a stage."""
        return self.number(group.splits[0]), group.stage_bytes, *[self.looks[d] for d in group.devices]

    def of(self, group: Group) -> StageBound:
        look = self.look(group)
        if look not in self.stages:
            self.stages[look] = StageBound(self.problem, group, self.prices)
        return self.stages[look]

    def number(self, splits: tuple[Split, ...]) -> int:
        """Of equal splits: splits are long to compare, and most groups of a look have the same object."""
        if id(splits) not in self.numbers:
            self.numbers[id(splits)] = self.known.setdefault(splits, len(self.known))
        return self.numbers[id(splits)]


class Places:
    """Every way to deal the devices of each site out into groups, and the sites put together."""

    def __init__(
        self, stages: Stages, received: Sequence[float], sums: Sums, kept: Container[int] | None = None
    ) -> None:
        """``received``: what each group takes more when it runs the first stage; ``kept``: there are no others."""
        self.problem = problem = stages.problem
        self.stages = stages
        self.received = received
        self.sums = sums
        self.kept = range(len(problem.groups)) if kept is None else kept
        self.hosts = len(problem.hosts)
        self.classes = _classes(problem)
        self.counts = _counts(problem)
        self.entered: dict[int, Curve] = {}
        self.inside = [self._signatures(host) for host in range(self.hosts)]
        self.wide = [i for i, g in enumerate(problem.groups) if g.site >= self.hosts and i in self.kept]

    def _taken(self, group: Group, host: int) -> tuple[int, ...]:
        """How many devices of each class of a host a group has."""
        here = [self.problem.alike[d] for d in group.devices if d in self.problem.hosts[host]]
        return tuple(here.count(each) for each in self.classes[host])

    def _signatures(self, host: int) -> dict["_Signature", list[int]]:
        """Groups of a host, by what matters here."""
        alike = self.problem.alike
        found: dict[tuple[object, ...], list[int]] = {}
        for index, group in enumerate(self.problem.groups):
            if group.site == host and index in self.kept:
                key = (*self.stages.look(group), *[alike[d] for d in group.devices], *self._modes(index))
                found.setdefault(key, []).append(index)
        return {self._signature(members[0], host): members for members in found.values()}

    def _modes(self, index: int) -> tuple[float, float, float]:
        group = self.problem.groups[index]
        over = group.network_hop_ns + self.problem.network_message_ns
        return group.hop_ns, over, group.first.same_ns + self.received[index]

    def _signature(self, index: int, host: int) -> "_Signature":
        problem, group = self.problem, self.problem.groups[index]
        capacity, (kind,) = problem.capacity_bytes, problem.kinds
        return _Signature(
            taken=self._taken(group, host),
            splits=self.stages.number(group.splits[0]),
            room=tuple(capacity[d] - n for d, n in zip(group.devices, group.stage_bytes, strict=True)),
            unit_ps=tuple(kind.unit_ps[d] for d in group.devices),
            paid=tuple(float(self.stages.prices[d]) for d in group.devices),
            modes=self._modes(index),
        )

    @cached_property
    def curves(self) -> dict[int, Curve]:
        """Of each group; equal ones are computed once."""
        known: dict[int, Curve] = {}
        found = {}
        for index, group in enumerate(self.problem.groups):
            if index in self.kept:
                stage = self.stages.of(group)
                if id(stage) not in known:
                    known[id(stage)] = self.sums.curve(stage)
                found[index] = known[id(stage)]
        return found

    @cached_property
    def tables(self) -> list["_Table"]:
        """Of each host; equal ones are computed once."""
        known: dict[tuple[object, ...], _Table] = {}
        found = []
        for host, signatures in enumerate(self.inside):
            message = self.problem.message_ns[host]
            key = (self.counts[host], tuple(signatures), message)
            if key not in known:
                priced = [(each, self.curves[members[0]]) for each, members in signatures.items()]
                known[key] = _Table(self.counts[host], priced, self.sums, message)
            found.append(known[key])
        return found

    def through_groups(self, far: float = limits.FAR) -> list[float]:
        """The least time of the stages of any answer with each group.

        Groups over several hosts are few or bad, as the network is slow: the bad ones are not gone into any further
        than their own bound, which then bounds every answer that has one.
        """
        bounds = [math.inf] * len(self.problem.groups)
        self._with_wide(None, (), bounds)
        anywhere = self._any_of(self.wide)
        for wide in self.wide:
            bounds[wide] = self._through_wide(wide, anywhere)
        limit = far * min(bounds)
        if len(self.wide) > limits.MOST_NEAR:
            limit = min(limit, sorted(bounds[wide] for wide in self.wide)[limits.MOST_NEAR])
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

    def _any_of(self, wides: Iterable[int]) -> Curve:
        """The site of any of these groups over several hosts, as often as one likes."""
        sums = self.sums
        found = np.full((3, sums.size), math.inf)
        found[HOP] = sums.no_layers()
        for wide in wides:
            found = np.minimum(found, self._alone(wide))
        several = np.minimum(found[NETWORK], found[HOP])
        for _ in range(len(self.problem.devices).bit_length()):
            several = np.minimum(several, sums.plus(several, sums.spread(several)))
        found[NETWORK] = np.minimum(found[NETWORK], several)
        found[FIRST] = np.minimum(found[FIRST], sums.plus(found[FIRST], sums.spread(several)))
        return found

    def _through_wide(self, wide: int, anywhere: Curve) -> float:
        """The same of a group over several hosts, as if other such groups took no devices."""
        parts = [table.place(rest) for table, rest in zip(self.tables, self._left(wide), strict=True)]
        around = _nowhere(self.sums)
        for part in (*parts, anywhere):
            around = _with_place(self.sums, around, part)
        return _closed(self.sums, self._alone(wide), around)

    def _with_wide(self, wide: int | None, near: Sequence[int], bounds: list[float]) -> None:
        """Lower ``bounds`` to the least of the answers in which this group over several hosts runs, or none does."""
        problem = self.problem
        left = list(self.counts) if wide is None else self._left(wide)
        parts = [table.place(rest) for table, rest in zip(self.tables, left, strict=True)]
        if wide is not None:
            parts.append(self._alone(wide))
            mine = set(problem.groups[wide].devices)
            parts.append(self._any_of(other for other in near if not mine & set(problem.groups[other].devices)))
        around = _all_but_each(self.sums, parts)
        if wide is not None:
            bounds[wide] = min(bounds[wide], _closed(self.sums, parts[self.hosts], around[self.hosts]))
        for host in range(self.hosts):
            closing = _Closing(self.tables[host], around[host])
            for signature, members in self.inside[host].items():
                rest = _less(left[host], signature.taken)
                if min(rest) < 0:
                    continue
                value = closing.value(rest, signature, self.curves[members[0]])
                for index in members:
                    bounds[index] = min(bounds[index], value)

    def _alone(self, wide: int) -> Curve:
        if wide not in self.entered:
            self.entered[wide] = self._new_alone(wide)
        return self.entered[wide]

    def _new_alone(self, wide: int) -> Curve:
        """The site of a group over several hosts, entered.

        Its hosts may be other sites' too, which pay for messages to them: it pays itself only where it is all there
        is. Of the hosts that are reached over the network, the one that the message comes from pays nothing.
        """
        problem = self.problem
        group, curve = problem.groups[wide], self.curves[wide]
        first = curve + (group.first.same_ns + self.received[wide] - problem.network_message_ns)
        members = [len(set(group.devices) & set(devices)) for devices in problem.hosts]
        several = sum(ns for ns, count in zip(problem.message_ns, members, strict=True) if count > 1)
        reached = sum(count > 0 for count in members)
        first = self.sums.with_all(first, several + reached * problem.network_message_ns)
        return np.stack([np.full_like(curve, math.inf), curve + group.network_hop_ns, first])


def _less(counts: tuple[int, ...], taken: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(count - each for count, each in zip(counts, taken, strict=True))


def _nowhere(sums: Sums) -> Curve:
    """No site: no layers, and no first stage."""
    return np.stack([sums.no_layers(), np.full(sums.size, math.inf)])


def _all_but_each(sums: Sums, parts: Sequence[Curve]) -> list[Curve]:
    """For each site, all the others together: [whether the first stage is among them, …]."""
    before, after = [_nowhere(sums)], [_nowhere(sums)]
    for part in parts[:-1]:
        before.append(_with_place(sums, before[-1], part))
    for part in reversed(parts[1:]):
        after.append(_with_place(sums, after[-1], part))
    return [_with_rest(sums, one, other) for one, other in zip(before, reversed(after), strict=True)]


def _with_place(sums: Sums, rest: Curve, part: Curve) -> Curve:
    """One more site: not entered (only with no layers), entered over the network, or the one where all begins."""
    idle = rest + part[HOP, 0] if math.isfinite(part[HOP, 0]) else np.full_like(rest, math.inf)
    found = np.minimum(idle, sums.plus(rest, sums.spread(part[NETWORK])))
    found[1] = np.minimum(found[1], sums.plus(rest[0], sums.spread(part[FIRST])))
    return found


def _with_rest(sums: Sums, one: Curve, other: Curve) -> Curve:
    none, some = (sums.spread(each) for each in other)
    return np.stack([sums.plus(one[0], none), np.minimum(sums.plus(one[1], none), sums.plus(one[0], some))])


def _closed(sums: Sums, part: Curve, around: Curve) -> float:
    """All layers, the first stage in exactly one site."""
    return min(sums.all_layers(part[FIRST], around[0]), sums.all_layers(part[NETWORK], around[1]))


class _Table:
    """Of one host, for any devices that are left of each class: least times with them.

    Axes: state (how many devices of each class may be used), mode, layers. A host is told a message in all but the
    answers that use a single device of it.
    """

    def __init__(
        self, counts: tuple[int, ...], groups: Sequence[tuple[_Signature, Curve]], sums: Sums, message_ns: int
    ) -> None:
        self.message_ns = message_ns
        self.sums = sums
        merged: dict[tuple[tuple[int, ...], tuple[float, float, float]], Curve] = {}
        for each, curve in groups:  # of those that take the same devices and are reached alike, the best
            key = each.taken, each.modes
            merged[key] = np.minimum(merged[key], curve) if key in merged else curve
        self.alone = [(taken, _alone(curve, modes)) for (taken, modes), curve in merged.items() if sum(taken) == 1]
        self.best = np.full((*(count + 1 for count in counts), 3, sums.size), math.inf)
        first = (0,) * len(counts)
        self.best[first][HOP] = sums.no_layers()
        stages = [(taken, modes, sums.spread(curve)) for (taken, modes), curve in merged.items()]
        self.taken = np.array([taken for taken, _, _ in stages], dtype=np.int64).reshape(-1, len(counts))
        for state in product(*(range(count + 1) for count in counts)):
            if state != first:
                self._deal(state, stages)

    def _deal(
        self, state: tuple[int, ...], stages: Sequence[tuple[tuple[int, ...], tuple[float, float, float], Curve]]
    ) -> None:
        """Of the first class that is left, either one device remains idle, or some group has one."""
        here = next(number for number, count in enumerate(state) if count)
        best = self.best[(*state[:here], state[here] - 1, *state[here + 1 :])].copy()
        fitting = (self.taken[:, here] > 0) & (self.taken <= state).all(axis=1)
        for number in np.flatnonzero(fitting).tolist():
            taken, modes, spread = stages[number]
            rest = _less(state, taken)
            np.minimum(best, _grown(self.sums.plus(self.best[rest], spread), modes), out=best)
        self.best[state] = best

    def place(self, left: tuple[int, ...]) -> Curve:
        """With at most the devices left; a site that is not entered has no layers."""
        found = self._told(self.best[left].copy())
        for taken, alone in self.alone:
            if min(_less(left, taken)) >= 0:
                found = np.minimum(found, alone)
        found[HOP] = self.sums.no_layers()
        return found

    def _told(self, found: Curve) -> Curve:
        """Of several devices, in a site that is entered."""
        found[HOP] = math.inf
        found += self.message_ns
        return found


class _Closing:
    """Least times of all layers with a group of a host, in what is around the host."""

    def __init__(self, table: _Table, around: Curve) -> None:
        self.table = table
        self.around = around
        self.sums = table.sums
        self.spread = [self.sums.spread(each) for each in around]
        self.rests: dict[tuple[int, ...], tuple[Curve, Curve]] = {}
        self.closed: dict[tuple[object, ...], Curve] = {}

    def value(self, rest: tuple[int, ...], signature: _Signature, curve: Curve) -> float:
        """With at most the devices left of the others."""
        single = sum(signature.taken) == 1
        key = (rest, single, signature.modes)
        if key not in self.closed:
            self.closed[key] = self._beside(rest, single, signature.modes)
        return self.sums.all_layers(curve, self.closed[key])

    def _beside(self, rest: tuple[int, ...], single: bool, modes: tuple[float, float, float]) -> Curve:
        """Of all but the group, the host told where it has several devices."""
        if rest not in self.rests:
            self.rests[rest] = self._of_rest(rest)
        entered, empty = self.rests[rest]
        entering = np.array([modes[FIRST], modes[NETWORK]])[:, None]
        found: Curve = np.minimum(entered + modes[HOP], (empty + entering).min(axis=0)) + self.table.message_ns
        return np.minimum(found, (self.around + entering).min(axis=0)) if single else found

    def _of_rest(self, rest: tuple[int, ...]) -> tuple[Curve, Curve]:
        """With the site entered, and [whether the first stage is elsewhere] before it is."""
        best, (none, some), plus = self.table.best[rest], self.spread, self.sums.plus
        entered = np.minimum(plus(best[FIRST], none), plus(best[NETWORK], some))
        return entered, np.stack([plus(best[HOP], none), plus(best[HOP], some)])


def _alone(curve: Curve, modes: tuple[float, float, float]) -> Curve:
    """A site of one group."""
    return np.stack([np.full_like(curve, math.inf), curve + modes[NETWORK], curve + modes[FIRST]])


def _grown(stages: Curve, modes: tuple[float, float, float]) -> Curve:
    """One stage more, without its entry, to with it: in a site that has been entered, or entering it."""
    found = stages + modes[HOP]
    for mode in (NETWORK, FIRST):
        found[mode] = np.minimum(found[mode], stages[HOP] + modes[mode])
    return found
