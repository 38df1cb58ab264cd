"""Lower bounds of the time of all stages together, for every group that one of them runs on.

The relaxation: stages are bounded one by one (:mod:`planner.solver.bounds.stage`), on disjoint groups, with all layers
in sum; each site is entered once, with its hops and messages; blocks take no memory. It is solved for each group g as
the least over all sets of disjoint groups with g: by a dynamic programme over the devices of each host, in
:mod:`planner.solver.bounds.site_table`, and its results are added up over the hosts, in
:mod:`planner.solver.bounds.sites`.

A group over several hosts is a site of its own, and takes devices of several hosts: the programme is repeated for each
set of such groups that there are devices for, where these are no more than ``limits.MOST_WIDE_SETS``. Otherwise it is
repeated for each such group that may be in a good answer, and others beside it take no devices; one that is worse than
the least bound by more than ``limits.FAR`` keeps a coarser bound.
"""

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from planner.integers import rounds
from planner.solver import limits
from planner.solver.bounds.combine import Sums
from planner.solver.bounds.site_table import FIRST, HOP, NETWORK, Closing, Entry, SiteTable, State, less
from planner.solver.bounds.sites import all_but_each, all_layers, no_sites, with_site
from planner.solver.bounds.stage import Curve
from planner.solver.bounds.stage_cache import StageCache
from planner.solver.problem import Problem


def _classes(problem: Problem) -> list[list[int]]:
    """Return the classes of devices of each host."""
    return [sorted({problem.alike[d] for d in devices}) for devices in problem.hosts]


def _counts(problem: Problem) -> list[State]:
    """Return how many devices each host has of each of its classes."""
    return [
        tuple(sum(problem.alike[d] == number for d in devices) for number in classes)
        for devices, classes in zip(problem.hosts, _classes(problem), strict=True)
    ]


def most_states(problem: Problem) -> int:
    """Return the most states of any host's dynamic programme."""
    return max(math.prod(count + 1 for count in counts) for counts in _counts(problem))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Signature:
    """All that the programme of a host takes from one of its groups; hosts with equal signatures share a table."""

    taken: State
    splits: tuple[int, ...]
    """Number of the splits in the stage cache, per kind."""
    room_bytes: tuple[int, ...]
    unit_ps: tuple[tuple[int, ...], ...]
    """Per kind, per member."""
    prices: tuple[float, ...]
    """ns per byte on each member."""
    quantum_ns: int
    entry: Entry


class GroupBounds:
    """The dynamic programme over all devices, for one way to add stages up."""

    def __init__(
        self, stages: StageCache, first_ns: Sequence[float], sums: Sums, kept: Container[int] | None = None
    ) -> None:
        """``first_ns``: for each group, what it takes more when it runs the first stage, beyond ``same_ns``;
        ``kept``: the groups to consider, by default all."""
        self.problem = problem = stages.problem
        self.stages = stages
        self.first_ns = first_ns
        self.sums = sums
        self.kept = [g for g in range(len(problem.groups)) if kept is None or g in kept]
        self.hosts = len(problem.hosts)
        self.classes = _classes(problem)
        self.counts = _counts(problem)
        self.curves = self._curves()
        self.inside = [self._signatures(host) for host in range(self.hosts)]
        self.tables = self._tables()
        self.wide = [g for g in self.kept if problem.groups[g].site >= self.hosts]
        """Groups over several hosts."""
        self._wide_parts: dict[int, Curve] = {}
        self.floor = math.inf
        """ns that every answer takes at least of which ``bounds`` tells no more."""

    # ---- one host ----

    def _taken(self, g: int, host: int) -> State:
        """Return how many devices of each class of a host a group has."""
        alike = [self.problem.alike[d] for d in self.problem.groups[g].devices if d in self.problem.hosts[host]]
        return tuple(alike.count(number) for number in self.classes[host])

    def _entry(self, g: int) -> Entry:
        group = self.problem.groups[g]
        network_ns = group.network_hop_ns + self.problem.network_message_ns
        return group.hop_ns, network_ns, group.first.same_ns + self.first_ns[g]

    def _curves(self) -> dict[int, Curve]:
        """Return the curve of each group; equal ones are the same object."""
        known: dict[int, Curve] = {}
        curves = {}
        for g in self.kept:
            stage = self.stages.bound(self.problem.groups[g])
            if id(stage) not in known:
                known[id(stage)] = self.sums.curve(stage)
            curves[g] = known[id(stage)]
        return curves

    def _signatures(self, host: int) -> dict[_Signature, list[int]]:
        """Return the groups of a host, by signature."""
        alike = self.problem.alike
        members: dict[tuple[object, ...], list[int]] = {}
        for g in self.kept:
            group = self.problem.groups[g]
            if group.site == host:
                key = (*self.stages.key(group), *[alike[d] for d in group.devices], *self._entry(g))
                members.setdefault(key, []).append(g)
        return {self._signature(groups[0], host): groups for groups in members.values()}

    def _signature(self, g: int, host: int) -> _Signature:
        problem, group = self.problem, self.problem.groups[g]
        capacity = problem.capacity_bytes
        return _Signature(
            taken=self._taken(g, host),
            splits=self.stages.splits_numbers(group),
            room_bytes=tuple(capacity[d] - n for d, n in zip(group.devices, group.stage_bytes, strict=True)),
            unit_ps=tuple(group.unit_ps(k, kind) for k, kind in enumerate(problem.kinds)),
            prices=tuple(float(self.stages.prices[d]) for d in group.devices),
            quantum_ns=group.quantum_ns,
            entry=self._entry(g),
        )

    def _tables(self) -> list[SiteTable]:
        """Return the table of each host; equal hosts share one."""
        known: dict[tuple[object, ...], SiteTable] = {}
        tables = []
        for host, signatures in enumerate(self.inside):
            message_ns = self.problem.least_message_ns[host]
            key = (self.counts[host], tuple(signatures), message_ns)
            if key not in known:
                groups = [(s.taken, s.entry, self.curves[members[0]]) for s, members in signatures.items()]
                known[key] = SiteTable(self.counts[host], groups, self.sums, message_ns)
            tables.append(known[key])
        return tables

    # ---- all hosts, and groups over several ----

    @cached_property
    def bounds(self) -> list[float]:
        """The least ns of the stages of any answer with each group, by index; infinite where there is none."""
        sets = self._wide_sets()
        return self._one_by_one() if sets is None else self._set_by_set(sets)

    def _set_by_set(self, sets: Iterable[Sequence[int]]) -> list[float]:
        """Return the bounds by all sets of groups over several hosts."""
        bounds = [math.inf] * len(self.problem.groups)
        for wides in sets:
            self._lower(bounds, wides, ())
        for alike in self._alike_wides:
            for wide in alike:
                bounds[wide] = bounds[alike[0]]
        return bounds

    def _one_by_one(self) -> list[float]:
        """Return the bounds by single groups over several hosts, with others beside them that take no devices.

        One whose coarse bound is beyond the limit is not considered beside others: every answer that has one takes at
        least the least of their coarse bounds, ``floor``, and so no bound may be higher.
        """
        bounds = [math.inf] * len(self.problem.groups)
        self._lower(bounds, (), ())
        alike = {groups[0]: groups for groups in self._renamed_wides}
        anywhere = self._any_of(alike)
        coarse = {wide: self._coarse(wide, anywhere) for wide in alike}
        limit = limits.FAR * min(*bounds, *coarse.values())
        if len(coarse) > limits.MOST_NEAR:
            limit = min(limit, sorted(coarse.values())[limits.MOST_NEAR])
        near = [wide for wide, bound in coarse.items() if bound <= limit]
        for wide, bound in coarse.items():
            bounds[wide] = bound if bound > limit else math.inf
        for wide in near:
            self._lower(bounds, (wide,), self._beside(wide, near))
        self._rename(bounds)
        floor = min((bound for bound in coarse.values() if bound > limit), default=math.inf)
        if math.isfinite(floor):
            self.floor = max(floor, limit)
        return [min(bound, self.floor) if math.isfinite(bound) else bound for bound in bounds]

    def _beside(self, wide: int, others: Iterable[int]) -> list[int]:
        """Return those of ``others`` for which equal hosts have devices enough beside a group, wherever both are."""
        left = self._in_equal_hosts(self._left((wide,)))
        rest = {g: map(less, left, self._taken_of_equal[g]) for g in others}
        return [g for g in others if all(min(counts) >= 0 for counts in rest[g])]

    @cached_property
    def _taken_of_equal(self) -> dict[int, list[State]]:
        """Number of devices of each class of equal hosts together that groups over several hosts have."""
        return {groups[0]: self._in_equal_hosts(self._wide_taken[groups[0]]) for groups in self._renamed_wides}

    def _in_equal_hosts(self, counts: Sequence[State]) -> list[State]:
        """Return the sums over equal hosts of a number of devices per class of each host."""
        return [tuple(map(sum, zip(*(counts[host] for host in hosts), strict=True))) for hosts in self._equal_hosts]

    def _rename(self, bounds: list[float]) -> None:
        """Lower each bound to the least of those of groups that are it on other equal hosts."""
        inside = (
            chain.from_iterable(groups)
            for hosts in self._equal_hosts
            for groups in zip(*(self.inside[host].values() for host in hosts), strict=True)
        )
        for groups in (*map(list, inside), *self._renamed_wides):
            least = min(bounds[g] for g in groups)
            for g in groups:
                bounds[g] = least

    @cached_property
    def _equal_hosts(self) -> list[list[int]]:
        """Hosts that nothing in the programme tells apart."""
        equal: dict[int, list[int]] = {}
        for host, table in enumerate(self.tables):
            equal.setdefault(id(table), []).append(host)
        return list(equal.values())

    @cached_property
    def _renamed_wides(self) -> list[list[int]]:
        """Groups over several hosts, together those that are one another on other equal hosts."""
        renamed: dict[tuple[object, ...], list[int]] = {}
        for wide in self.wide:
            taken = self._wide_taken[wide]
            hosts = tuple(tuple(sorted(taken[host] for host in equal)) for equal in self._equal_hosts)
            renamed.setdefault((hosts, id(self.curves[wide]), self._entry(wide)), []).append(wide)
        return list(renamed.values())

    @cached_property
    def _alike_wides(self) -> list[list[int]]:
        """Groups over several hosts, those together that nothing in the programme tells apart."""
        alike: dict[tuple[object, ...], list[int]] = {}
        for wide in self.wide:
            alike.setdefault((tuple(self._wide_taken[wide]), id(self.curves[wide]), self._entry(wide)), []).append(wide)
        return list(alike.values())

    def _wide_sets(self) -> list[tuple[int, ...]] | None:
        """Return all sets of groups over several hosts that there are devices for, alike ones by the first of them.

        None where they are more than ``limits.MOST_WIDE_SETS``.
        """
        sets: list[tuple[int, ...]] = []
        grown: list[tuple[tuple[int, ...], Sequence[int], Sequence[State]]] = [
            ((), [alike[0] for alike in self._alike_wides], self.counts)
        ]
        while grown:
            chosen, candidates, left = grown.pop()
            sets.append(chosen)
            for number, wide in enumerate(candidates):
                rest = list(map(less, left, self._wide_taken[wide]))
                if all(min(counts) >= 0 for counts in rest):
                    grown.append(((*chosen, wide), candidates[number:], rest))
            if len(sets) + len(grown) > limits.MOST_WIDE_SETS:
                return None
        return sets

    def _lower(self, bounds: list[float], wides: Sequence[int], beside: Sequence[int]) -> None:
        """Lower ``bounds`` to the least of the answers with these groups over several hosts.

        ``beside``: such groups too, any of which may run as if they took no devices.
        """
        left = self._left(wides)
        parts = [table.site(rest) for table, rest in zip(self.tables, left, strict=True)]
        parts += map(self._wide_part, wides)
        if beside:
            parts.append(self._any_of(beside))
        around = all_but_each(self.sums, parts)
        for site, wide in enumerate(wides, start=self.hosts):
            bounds[wide] = min(bounds[wide], all_layers(self.sums, parts[site], around[site]))
        known: dict[tuple[int, State], list[float]] = {}  # hosts with one table and as many devices left are alike
        for host, (table, rest) in enumerate(zip(self.tables, left, strict=True)):
            if (id(table), rest) not in known:
                known[id(table), rest] = self._closed(host, rest, around[host])
            for members, value in zip(self.inside[host].values(), known[id(table), rest], strict=True):
                for g in members:
                    bounds[g] = min(bounds[g], value)

    def _closed(self, host: int, left: State, around: Curve) -> list[float]:
        """Return the least ns of all layers with each different group of a host, infinite without devices for it.

        ``left``: devices of the host that stages may run on; ``around``: all other sites.
        """
        closing = Closing(self.tables[host], around)
        values = []
        for signature, members in self.inside[host].items():
            rest = less(left, signature.taken)
            curve = self.curves[members[0]]
            fits = min(rest) >= 0
            values.append(closing.value(rest, signature.taken, signature.entry, curve) if fits else math.inf)
        return values

    def _coarse(self, wide: int, anywhere: Curve) -> float:
        """Return the bound of a group over several hosts when other such groups take no devices.

        ``anywhere``: the site of any number of such groups.
        """
        parts = [table.site(rest) for table, rest in zip(self.tables, self._left((wide,)), strict=True)]
        rest = no_sites(self.sums)
        for part in (*parts, anywhere):
            rest = with_site(self.sums, rest, part)
        return all_layers(self.sums, self._wide_part(wide), rest)

    @cached_property
    def _wide_taken(self) -> dict[int, list[State]]:
        """Number of devices of each class of each host that a group over several hosts has."""
        return {wide: [self._taken(wide, host) for host in range(self.hosts)] for wide in self.wide}

    def _left(self, wides: Sequence[int]) -> list[State]:
        """Return the devices of each host beside those of some groups, negative where these have more."""
        left = list(self.counts)
        for wide in wides:
            left = list(map(less, left, self._wide_taken[wide]))
        return left

    def _any_of(self, wides: Iterable[int]) -> Curve:
        """Return the part of any number of these groups over several hosts, each as often as one likes."""
        sums = self.sums
        part = np.full((3, sums.size), math.inf)
        part[HOP] = sums.no_layers()
        for wide in wides:
            part = np.minimum(part, self._wide_part(wide))
        several = np.minimum(part[NETWORK], part[HOP])
        for _ in range(len(self.problem.devices).bit_length()):  # doubling: as many as there are devices
            several = np.minimum(several, sums.plus(several, sums.spread(several)))
        entry_network = np.minimum(part[NETWORK], several)
        entry_first = np.minimum(part[FIRST], sums.plus(part[FIRST], sums.spread(several)))
        return np.stack([part[HOP], entry_network, entry_first])

    def _wide_part(self, wide: int) -> Curve:
        if wide not in self._wide_parts:
            self._wide_parts[wide] = self._new_wide_part(wide)
        return self._wide_parts[wide]

    def _new_wide_part(self, wide: int) -> Curve:
        """Return the part of a group over several hosts.

        It pays for the messages to hosts of which it has all devices. Its other hosts may be sites of other stages
        too, which pay for those: it pays these itself only where it has all layers. Of the hosts that are reached over
        the network, the one that sends pays nothing.
        """
        problem = self.problem
        group, curve = problem.groups[wide], self.curves[wide]
        whole_ns, shared_ns = 0, 0
        for host, devices in enumerate(problem.hosts):
            members = len(set(group.devices) & set(devices))
            ns = problem.network_message_ns + problem.least_message_ns[host] * rounds(members)
            whole_ns += ns if members == len(devices) else 0
            shared_ns += ns if 0 < members < len(devices) else 0
        later = curve + (group.network_hop_ns + whole_ns)
        first = curve + (group.first.same_ns + self.first_ns[wide] + whole_ns - problem.network_message_ns)
        return np.stack([np.full_like(curve, math.inf), later, self.sums.with_all(first, shared_ns)])
