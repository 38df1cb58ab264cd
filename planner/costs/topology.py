"""What devices share: the links between them, which one limits a group, and the cores that slow a group down."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations

from planner.costs.roofline import Tier, message_ns
from plans.schema import Device, Inventory, Link


def links_of(inventory: Inventory) -> dict[frozenset[str], Link]:
    """Return the link between every two devices, by the pair of their ids."""
    hosts = {host.name: host.link for host in inventory.hosts}
    links: dict[frozenset[str], Link] = {}
    for one, other in combinations(inventory.devices, 2):
        link = hosts[one.host] if one.host == other.host else inventory.network
        assert link is not None, "devices of two hosts have a network between them"
        links[frozenset((one.id, other.id))] = link
    return links | {frozenset((pair.a, pair.b)): pair.link for host in inventory.hosts for pair in host.pairs}


def slowest_link(links: Mapping[frozenset[str], Link], members: Iterable[str], message_bytes: int) -> Link | None:
    """Return the link among ``members`` that takes longest for a message; None for a single member."""
    pairs = combinations(sorted(set(members)), 2)
    return slowest((links[frozenset(pair)] for pair in pairs), message_bytes)


def slowest(links: Iterable[Link], message_bytes: int) -> Link | None:
    """Return the link that takes longest for a message, of equal ones one with the highest latency; None of none."""
    return max(links, key=lambda link: (message_ns(link, message_bytes), link.latency_ns), default=None)


def machines_of(devices: Sequence[Device], network: Link | None) -> list[int]:
    """Return for each of these devices how many of them are on its machine: hosts that share memory are one."""
    if network is not None and network.link_class == "shm":
        return [len(devices)] * len(devices)
    counts = Counter(device.host for device in devices)
    return [counts[device.host] for device in devices]


def together(device: Device, devices: int) -> Device:
    """Return a device with the rates that it has while so many devices of its machine compute, itself included.

    They are those measured with so many, or with the next larger number; with the largest where there is none.
    """
    if not device.together or devices == 1:
        return device
    rates = next((own for own in device.together if own.devices >= devices), device.together[-1])
    return replace(
        device,
        bandwidth_bytes_per_s=rates.bandwidth_bytes_per_s,
        flops_per_s=rates.flops_per_s,
        overhead_ns=rates.overhead_ns,
        pass_ns=rates.pass_ns,
        table_ns=rates.table_ns,
        measured=rates.measured,
        together=None,
    )


def all_at_once(inventory: Inventory) -> Inventory:
    """Return an inventory whose CPU devices have, as their own, the rates with all CPUs of their machine computing."""
    cpus = [device for device in inventory.devices if device.kind == "cpu"]
    counts = dict(zip((cpu.id for cpu in cpus), machines_of(cpus, inventory.network), strict=True))
    devices = (replace(together(own, counts.get(own.id, 1)), together=None) for own in inventory.devices)
    return replace(inventory, devices=tuple(devices))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """Parts of a group, one on each host."""

    hosts: int
    largest: int
    """Devices of the largest part."""
    unlike: tuple[tuple[int, ...], ...]
    """Parts of several devices, one of those on hosts of which all devices have one and the same link."""


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """Links of groups of devices, which are referred to by index in inventory order."""

    inventory: Inventory

    @cached_property
    def _links(self) -> dict[frozenset[str], Link]:
        return links_of(self.inventory)

    @cached_property
    def host_names(self) -> tuple[str, ...]:
        """Names of the hosts, in inventory order."""
        return tuple(host.name for host in self.inventory.hosts)

    @cached_property
    def host_of(self) -> tuple[int, ...]:
        """Index of the host of every device, in the order of devices."""
        return tuple(self.host_names.index(device.host) for device in self.inventory.devices)

    @cached_property
    def of_host(self) -> tuple[tuple[int, ...], ...]:
        """Devices of every host, in the order of hosts."""
        indices = range(len(self.host_names))
        return tuple(tuple(d for d, host in enumerate(self.host_of) if host == index) for index in indices)

    @cached_property
    def at_work(self) -> Callable[[tuple[int, ...]], tuple[Device, ...]]:
        """Return the devices of a group with the rates that they have while all of them compute."""
        return cache(self._at_work)

    def _at_work(self, members: tuple[int, ...]) -> tuple[Device, ...]:
        machines = machines_of([self.inventory.devices[member] for member in members], self.inventory.network)
        return tuple(together(self.inventory.devices[d], count) for d, count in zip(members, machines, strict=True))

    @cached_property
    def shares_cores(self) -> bool:
        """Whether devices that compute at once are slower than alone."""
        return any(device.together for device in self.inventory.devices)

    def inner_link(self, members: Sequence[int], message_bytes: int) -> Link | None:
        """Return the slowest link among members of one host; None for a single member."""
        if len(members) == 1:
            return None
        host = self.inventory.hosts[self.host_of[members[0]]]
        if not host.pairs:
            return host.link
        return slowest_link(self._links, [self.inventory.devices[d].id for d in members], message_bytes)

    def tiers(self, members: Sequence[int], message_bytes: int) -> tuple[Tier, Tier]:
        """Return a group's two tiers: inside hosts, with the largest part and the slowest link, and between hosts."""
        parts = self._parts(tuple(members))
        links = [link for part in parts.unlike if (link := self.inner_link(part, message_bytes))]
        inner = Tier(count=parts.largest, link=slowest(links, message_bytes))
        return inner, Tier(count=parts.hosts, link=self.inventory.network if parts.hosts > 1 else None)

    @cached_property
    def _parts(self) -> Callable[[tuple[int, ...]], "_Parts"]:
        """Return the parts of a group."""
        return cache(self._new_parts)

    def _new_parts(self, members: tuple[int, ...]) -> "_Parts":
        parts: dict[int, list[int]] = {}
        for device in members:
            parts.setdefault(self.host_of[device], []).append(device)
        unlike: dict[object, tuple[int, ...]] = {}
        for host, part in parts.items():
            own = self.inventory.hosts[host]
            if len(part) > 1:
                unlike.setdefault((host, own.link) if own.pairs else own.link, tuple(part))
        return _Parts(hosts=len(parts), largest=max(map(len, parts.values())), unlike=tuple(unlike.values()))
