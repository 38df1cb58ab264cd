"""Which devices may work together, and how they may divide attention: the candidates, without any figure.

Inside a host any set of devices is a candidate, but of devices that nothing tells apart only runs of neighbours: every
division of equal devices into groups is one of these, renamed. Over several hosts it is the same part of each of a
run of equal hosts: so many devices of each class of theirs; or devices that look alike, so many of each host of a run
of those that have such, or all where a host has less.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby, product

from planner.costs.topology import Fabric
from planner.errors import InputError
from plans.kv import KvDivision
from plans.schema import Inventory, KvAxis

MOST_SETS = 20_000
"""Candidate sets of one inventory; the search is over combinations of them."""

MOST_PARTS = 16
"""Parts of a host that groups over several hosts may consist of; where there are more, only whole classes count."""

MOST_BUNDLES = 16
"""KV heads are dealt out one by one up to so many, beyond that in equal bundles."""

MOST_WIDE_BUNDLES = 8
"""The same in each host of a group over several."""

MOST_COLUMNS = 60_000
"""Divisions of attention over all candidates; where there are more, KV heads come in larger bundles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceSet:
    """Devices that may do something together; the first is the leader. Devices of a host, then of a class, adjoin."""

    devices: tuple[int, ...]
    hosts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Device sets of an inventory."""

    fabric: Fabric

    @property
    def inventory(self) -> Inventory:
        return self.fabric.inventory

    @cached_property
    def looks(self) -> tuple[tuple[object, ...], ...]:
        """Of each device, all that the planner is told of it but its name and place."""
        return tuple(
            (
                device.kind,
                device.capacity_bytes,
                device.bandwidth_bytes_per_s,
                device.flops_per_s,
                device.overhead_ns,
            )
            for device in self.inventory.devices
        )

    def classes(self, host: int) -> list[tuple[int, ...]]:
        """Devices of a host that nothing tells apart, in order of the first; pairs of links tell all apart."""
        devices = self.fabric.of_host[host]
        if self.inventory.hosts[host].pairs:
            return [(device,) for device in devices]
        found: dict[tuple[object, ...], list[int]] = {}
        for device in devices:
            found.setdefault(self.looks[device], []).append(device)
        return [tuple(members) for members in found.values()]

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """Of each device, the number of its class."""
        numbers: dict[int, int] = {}
        for host in range(len(self.inventory.hosts)):
            for members in self.classes(host):
                numbers |= dict.fromkeys(members, len(set(numbers.values())))
        return tuple(numbers[device] for device in range(len(self.inventory.devices)))

    @cached_property
    def sets(self) -> tuple[DeviceSet, ...]:
        """All candidates: of one host, then of several; raise InputError where they are too many to search."""
        self._refuse_many()
        inside = [
            DeviceSet(devices=tuple(device for part in picked for device in part), hosts=(host,))
            for host in range(len(self.inventory.hosts))
            for picked in product(*(list(_neighbours(members)) for members in self.classes(host)))
            if any(picked)
        ]
        return tuple(sorted(inside, key=_order)) + tuple(sorted(self._wide, key=_order))

    @property
    def singles(self) -> tuple[DeviceSet, ...]:
        """Each device alone, in inventory order, but in its host a CPU after the GPUs."""
        devices = self.inventory.devices
        host_of = self.fabric.host_of
        order = sorted(range(len(devices)), key=lambda d: (host_of[d], devices[d].kind == "cpu", d))
        return tuple(DeviceSet(devices=(device,), hosts=(host_of[device],)) for device in order)

    def _refuse_many(self) -> None:
        hosts = range(len(self.inventory.hosts))
        inside = [
            math.prod(len(members) * (len(members) + 1) // 2 + 1 for members in self.classes(host)) - 1
            for host in hosts
        ]
        wide = len(self._wide)
        if sum(inside) + wide > MOST_SETS:
            worst = max(hosts, key=lambda host: inside[host])
            host = self.inventory.hosts[worst]
            apart = ", which pairs of links tell apart" if host.pairs else ""
            raise InputError(
                f"inventory: {sum(inside) + wide} candidate groups of devices, expected at most {MOST_SETS}: host "
                f"{host.name} has {len(self.classes(worst))} unlike devices{apart}: list fewer of them, or give those "
                "of one type the same memory, reserve and rates"
            )

    @cached_property
    def _equal_hosts(self) -> list[list[int]]:
        """Hosts that nothing tells apart, two or more."""
        if self.inventory.network is None:
            return []
        found: dict[tuple[object, ...], list[int]] = {}
        for index, host in enumerate(self.inventory.hosts):
            if not host.pairs:
                counts = Counter(self.looks[device] for device in self.fabric.of_host[index])
                found.setdefault((host.link, host.transport, frozenset(counts.items())), []).append(index)
        return [hosts for hosts in found.values() if len(hosts) > 1]

    def _parts(self, host: int) -> list[dict[tuple[object, ...], int]]:
        """How many devices of each look one host may give to a group over several."""
        sizes = {self.looks[members[0]]: len(members) for members in self.classes(host)}
        whole = math.prod(size + 1 for size in sizes.values()) - 1 > MOST_PARTS
        choices = [(0, size) if whole else range(size + 1) for size in sizes.values()]
        return [dict(zip(sizes, picked, strict=True)) for picked in product(*choices) if any(picked)]

    @cached_property
    def _wide(self) -> tuple[DeviceSet, ...]:
        """Over several hosts, each once."""
        return tuple(dict.fromkeys((*self._of_equal_hosts(), *self._of_one_look())))

    def _of_equal_hosts(self) -> Iterator[DeviceSet]:
        for equal in self._equal_hosts:
            for part in self._parts(equal[0]):
                for hosts in _runs(equal, 2):
                    devices = (self._part(host, part) for host in hosts)
                    yield DeviceSet(devices=tuple(d for each in devices for d in each), hosts=tuple(hosts))

    def _of_one_look(self) -> Iterator[DeviceSet]:
        """Whatever else the hosts have, and however they are linked."""
        if self.inventory.network is None:
            return
        found: dict[tuple[object, ...], dict[int, tuple[int, ...]]] = {}
        for index, host in enumerate(self.inventory.hosts):
            if not host.pairs:
                for members in self.classes(index):
                    found.setdefault(self.looks[members[0]], {})[index] = members
        for having in found.values():
            for hosts in _runs(tuple(having), 2):
                for most in range(1, max(len(having[host]) for host in hosts) + 1):
                    devices = (having[host][:most] for host in hosts)
                    yield DeviceSet(devices=tuple(d for each in devices for d in each), hosts=tuple(hosts))

    def _part(self, host: int, part: dict[tuple[object, ...], int]) -> list[int]:
        """The first devices of each class."""
        return [device for members in self.classes(host) for device in members[: part[self.looks[members[0]]]]]


def _order(candidate: DeviceSet) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return len(candidate.devices), tuple(sorted(candidate.devices)), candidate.devices


def _runs(items: Sequence[int], least: int) -> Iterator[Sequence[int]]:
    """Every run of ``least`` neighbours or more."""
    for start in range(len(items)):
        for stop in range(start + least, len(items) + 1):
            yield items[start:stop]


def _neighbours(members: tuple[int, ...]) -> Iterator[Sequence[int]]:
    """No member, and every run of neighbours."""
    yield ()
    yield from _runs(members, 1)


# ---- ways to divide ----


@cache
def ways(size: int, kv_heads: int, asked: KvAxis | None) -> tuple[KvDivision, ...]:
    """How a group of ``size`` may divide ``kv_heads``: by heads, or by subgroups of equal size m > 1.

    Where it has more members than there are heads, and not a multiple, also as many subgroups as there are heads, as
    equal as can be. Heads are repeated in subgroups only where there are more members than heads: else whole ones
    take less of each member, but for some uneven divisions, which take long to exclude. Asked for an axis, a group of
    several devices divides along this one.
    """
    found: list[KvDivision] = []
    if size == 1 or (size <= kv_heads and asked in (None, "heads")):
        found.append(KvDivision(axis="heads", subgroups=(1,) * size))
    divisors = [m for m in range(2, size + 1) if size % m == 0 and size // m <= kv_heads]
    sizes = [(m,) * (size // m) for m in divisors]
    if size > kv_heads and size % kv_heads:
        sizes.append(even(size, kv_heads))
    shared: tuple[KvAxis, ...] = ("context", "head_dim", "batch")
    axes: tuple[KvAxis, ...] = ("heads", *shared) if size > kv_heads else shared
    found += [KvDivision(axis=axis, subgroups=each) for axis in axes if asked in (None, axis) for each in sizes]
    return tuple(found)


@cache
def bundles(kv_heads: int, sizes: tuple[tuple[int, int], ...]) -> int:
    """Into how many equal bundles KV heads are divided at most, for (size, number) of the groups that divide them."""
    fitting = [n for n in range(min(MOST_BUNDLES, kv_heads), 0, -1) if kv_heads % n == 0]
    if kv_heads > MOST_BUNDLES and fitting[0] == 1:
        fitting.insert(0, kv_heads)  # a prime number of heads comes in no bundles

    def splits(parts: int) -> int:
        return sum(number * math.comb(parts - 1, size - 1) for size, number in sizes if size <= parts)

    return next(n for n in fitting if splits(n) <= MOST_COLUMNS or n == fitting[-1])


@cache
def divisions(kv_heads: int, most_bundles: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """Every way to deal the bundles out over ``parts``, one at least; more parts than bundles divide heads evenly."""
    if parts > most_bundles:
        return (even(kv_heads, parts),) if parts <= kv_heads else ()
    each = kv_heads // most_bundles
    return tuple(tuple(each * part for part in shares) for shares in compositions(most_bundles, parts))


@cache
def repeated_divisions(kv_heads: int, most_bundles: int, parts: int, hosts: int) -> tuple[tuple[int, ...], ...]:
    """The same division in each of several hosts where there is one, else the most even one."""
    if parts % hosts == 0 and kv_heads % hosts == 0 and parts <= kv_heads:
        most = min(most_bundles, MOST_WIDE_BUNDLES)
        inside = max(n for n in range(1, most + 1) if kv_heads // hosts % n == 0)
        return tuple(shares * hosts for shares in divisions(kv_heads // hosts, inside, parts // hosts))
    return (even(kv_heads, parts),) if parts <= kv_heads else ()


def even(total: int, parts: int) -> tuple[int, ...]:
    """``total`` as ``parts`` numbers that differ by one at most, the larger first."""
    each, more = divmod(total, parts)
    return (each + 1,) * more + (each,) * (parts - more)


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``total`` as ``parts`` positive numbers in order."""
    if parts == 1:
        yield (total,)
        return
    for first in range(1, total - parts + 2):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def sizes_of(sets: Iterable[DeviceSet]) -> tuple[tuple[int, int], ...]:
    """(size, number) of the candidates of one host."""
    lengths = sorted(len(each.devices) for each in sets if len(each.hosts) == 1)
    return tuple((size, len(list(found))) for size, found in groupby(lengths))
