"""Candidate device sets: which devices may hold a stage or a block together. Optimality is proven over these alone.

Devices of a host with equal figures (kind, capacity, rates, overhead) form a class; on a host with special pairs of
links every device is its own class. The candidates are:

* On one host: from each class one run of consecutive devices or none, in every combination. Among devices of a class
  any other choice is a relabelling of a run, so that nothing is lost on one host.
* On several equal hosts (equal links and devices): a run of two or more consecutive ones of them, with the same number
  of devices of each class on every host. Where a host has more than MOST_PARTS such numbers, only whole classes.
* On several hosts that have devices of one class, equal or not: a run of two or more consecutive ones of them, with up
  to n of these devices on each host, for each n.

Sets over several hosts that are none of these (unlike numbers of devices per host, classes combined differently) are
not candidates. How a set divides attention is enumerated in :mod:`planner.problem.kv_splits`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product
from typing import TypeVar

from planner.costs.topology import Fabric
from planner.errors import InputError
from plans.schema import Inventory

MOST_SETS = 20_000
"""Candidate sets of an inventory at most; the search is over combinations of them."""

MOST_PARTS = 16
"""Parts of a host that sets over equal hosts consist of at most; where there are more, only whole classes count."""

Price = TypeVar("Price")

Look = tuple[object, ...]
"""Everything that a placement depends on about a device but its name and host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceSet:
    """Devices that may hold a stage or a block; the first is the leader. Devices of a host, then of a class, adjoin."""

    devices: tuple[int, ...]
    """Indices in inventory order."""
    hosts: tuple[int, ...]
    """Hosts of the devices, each once, in the order of devices."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Candidate device sets of an inventory."""

    fabric: Fabric

    @property
    def inventory(self) -> Inventory:
        return self.fabric.inventory

    @cached_property
    def looks(self) -> tuple[Look, ...]:
        """Figures of every device on which a placement depends, in the order of devices."""
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
        """Return the classes of equal devices of a host, by their first; pairs of links tell all devices apart."""
        devices = self.fabric.of_host[host]
        if self.inventory.hosts[host].pairs:
            return [(device,) for device in devices]
        classes: dict[Look, list[int]] = {}
        for device in devices:
            classes.setdefault(self.looks[device], []).append(device)
        return [tuple(members) for members in classes.values()]

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """Number of the class of every device, in the order of devices."""
        numbers: dict[int, int] = {}
        for host in range(len(self.inventory.hosts)):
            for members in self.classes(host):
                numbers |= dict.fromkeys(members, len(set(numbers.values())))
        return tuple(numbers[device] for device in range(len(self.inventory.devices)))

    @cached_property
    def sets(self) -> tuple[DeviceSet, ...]:
        """All candidates, of one host, then of several; raise InputError where they are too many to search."""
        self._refuse_many()
        inside = [
            DeviceSet(devices=tuple(device for part in chosen for device in part), hosts=(host,))
            for host in range(len(self.inventory.hosts))
            for chosen in product(*(list(_neighbours(members)) for members in self.classes(host)))
            if any(chosen)
        ]
        return tuple(sorted(inside, key=_order)) + tuple(sorted(self._wide, key=_order))

    @property
    def singles(self) -> tuple[DeviceSet, ...]:
        """Every device alone, in inventory order, but CPUs after the GPUs of their host."""
        devices = self.inventory.devices
        host_of = self.fabric.host_of
        order = sorted(range(len(devices)), key=lambda d: (host_of[d], devices[d].kind == "cpu", d))
        return tuple(DeviceSet(devices=(device,), hosts=(host_of[device],)) for device in order)

    def signature(self, device_set: DeviceSet) -> tuple[object, ...]:
        """Return a key that is equal for sets which differ only in names: looks, parts per host, and links."""
        hosts = [self.inventory.hosts[host] for host in device_set.hosts]
        links = device_set.devices if any(host.pairs for host in hosts) else tuple(host.link for host in hosts)
        looks = tuple(self.looks[device] for device in device_set.devices)
        by_host = groupby(device_set.devices, key=self.fabric.host_of.__getitem__)
        return looks, tuple(len(list(members)) for _, members in by_host), links

    def priced_once(self, price: Callable[[DeviceSet], Price]) -> Callable[[DeviceSet], Price]:
        """Return ``price`` with its results kept: sets that differ only in names are priced once."""
        known: dict[tuple[object, ...], Price] = {}

        def kept(device_set: DeviceSet) -> Price:
            key = self.signature(device_set)
            if key not in known:
                known[key] = price(device_set)
            return known[key]

        return kept

    def _refuse_many(self) -> None:
        """Raise InputError, naming the host with most candidates, where there are more than MOST_SETS."""
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
        """Lists of two or more hosts with equal links, transport and devices."""
        if self.inventory.network is None:
            return []
        equal: dict[tuple[object, ...], list[int]] = {}
        for index, host in enumerate(self.inventory.hosts):
            if not host.pairs:
                counts = Counter(self.looks[device] for device in self.fabric.of_host[index])
                equal.setdefault((host.link, host.transport, frozenset(counts.items())), []).append(index)
        return [hosts for hosts in equal.values() if len(hosts) > 1]

    def _parts(self, host: int) -> list[dict[Look, int]]:
        """Return the numbers of devices by look that a host may contribute to a set over equal hosts."""
        sizes = {self.looks[members[0]]: len(members) for members in self.classes(host)}
        whole = math.prod(size + 1 for size in sizes.values()) - 1 > MOST_PARTS
        choices = [(0, size) if whole else range(size + 1) for size in sizes.values()]
        return [dict(zip(sizes, picked, strict=True)) for picked in product(*choices) if any(picked)]

    @cached_property
    def _wide(self) -> tuple[DeviceSet, ...]:
        """Sets over several hosts, each once."""
        return tuple(dict.fromkeys((*self._of_equal_hosts(), *self._of_one_look())))

    def _of_equal_hosts(self) -> Iterator[DeviceSet]:
        """Yield the same part of every host of a run of equal hosts."""
        for equal in self._equal_hosts:
            for part in self._parts(equal[0]):
                for hosts in _runs(equal, 2):
                    parts = (self._part(host, part) for host in hosts)
                    yield DeviceSet(devices=tuple(d for part in parts for d in part), hosts=tuple(hosts))

    def _of_one_look(self) -> Iterator[DeviceSet]:
        """Yield devices of one look from a run of the hosts that have such, whatever else these have."""
        if self.inventory.network is None:
            return
        owners: dict[Look, dict[int, tuple[int, ...]]] = {}
        for index, host in enumerate(self.inventory.hosts):
            if not host.pairs:
                for members in self.classes(index):
                    owners.setdefault(self.looks[members[0]], {})[index] = members
        for by_host in owners.values():
            for hosts in _runs(tuple(by_host), 2):
                for most in range(1, max(len(by_host[host]) for host in hosts) + 1):
                    parts = (by_host[host][:most] for host in hosts)
                    yield DeviceSet(devices=tuple(d for part in parts for d in part), hosts=tuple(hosts))

    def _part(self, host: int, part: dict[Look, int]) -> list[int]:
        """Return the first devices of each class of a host, as many as ``part`` says."""
        return [device for members in self.classes(host) for device in members[: part[self.looks[members[0]]]]]


def _order(candidate: DeviceSet) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return len(candidate.devices), tuple(sorted(candidate.devices)), candidate.devices


def _runs(items: Sequence[int], least: int) -> Iterator[Sequence[int]]:
    """Yield every run of ``least`` consecutive items or more."""
    for start in range(len(items)):
        for stop in range(start + least, len(items) + 1):
            yield items[start:stop]


def _neighbours(members: tuple[int, ...]) -> Iterator[Sequence[int]]:
    """Yield no member, and every run of consecutive ones."""
    yield ()
    yield from _runs(members, 1)
