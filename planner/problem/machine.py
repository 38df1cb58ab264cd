"""Canonical form of a machine: hosts, devices and links in an order that no name and no way of writing decides.

Devices are told apart by their figures and by how they are linked, never by id or by their place in a list. Devices of
a host form *modules*: sets whose members all have one link to any device outside. A module is a single device; or its
parts are *joined*, every two of them by one and the same link; or it is *irregular*, and its devices are along a path
that goes on over the fastest link. The parts of a joined module are the connected components of all its other links.

Every module has a *form*, equal for two modules if and only if an exchange of the two changes nothing; parts of a
module are in the order of their sizes and forms, devices of an irregular one in that of
:mod:`planner.problem.canonical_order`. So two inventories that differ only in names give one machine, integer for
integer; among devices and hosts that nothing tells apart the order of names remains.

A link is its latency and bandwidth. However an inventory writes the links of a host, here the host has the one that
most of its pairs of devices have, and lists the pairs that differ from it.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

from planner.integers import ceil_div
from planner.problem.canonical_order import canonical_order
from plans.schema import Device, Host, Inventory, Link, Pair, Together

PATH_BYTES = 1 << 20
"""Message by which links are compared along the path of an irregular module."""

Look = tuple[Any, ...]
"""Everything that a placement depends on about a device but its name and links: GPUs first, the larger ones first."""

Figures = tuple[int, int, tuple[Any, ...], int | None]
"""Latency and bandwidth of a link, its times of sums, and its latency to who is awake."""

Form = tuple[tuple[Look, ...], tuple[Any, ...]]
"""Looks of the devices of a module in canonical order, and how they are linked; comparable."""


def look_of(device: Device) -> Look:
    """Return the figures of a device, in the order in which devices are compared."""
    return (
        int(device.kind != "cuda"),
        -device.capacity_bytes,
        -device.bandwidth_bytes_per_s,
        -device.flops_per_s,
        device.overhead_ns,
        device.compute_capability or 0,
        *_fixed(device),
        _measured(device),
        tuple(_together(own) for own in device.together or ()),
    )


def _speed_of(look: Look) -> Look:
    """Return a look without its memory."""
    kind, _, *rest = look
    return (kind, *rest)


def _together(own: Together) -> Look:
    return own.devices, -own.bandwidth_bytes_per_s, -own.flops_per_s, own.overhead_ns, *_fixed(own), _measured(own)


def _measured(own: Device | Together) -> Look:
    return () if own.measured is None else astuple(own.measured)


def _fixed(own: Device | Together) -> Look:
    """Return fixed times that a device may have."""
    return tuple((ns is not None, ns or 0) for ns in (own.pass_ns, own.table_ns))


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """Devices of a host that all have one link to any device outside."""

    devices: tuple[int, ...]
    """Indices, in canonical order."""
    form: Form
    kind: Literal["device", "joined", "irregular"]
    parts: tuple["Module", ...]
    """Parts of a joined module, by form; of others none."""

    @property
    def classes(self) -> tuple[tuple["Module", ...], ...]:
        """Return the parts that nothing tells apart together, in order."""
        classes: dict[Form, list[Module]] = {}
        for part in self.parts:
            classes.setdefault(part.form, []).append(part)
        return tuple(map(tuple, classes.values()))

    def renumbered(self, number: Mapping[int, int]) -> "Module":
        """Return the module with other indices of its devices."""
        return dataclasses.replace(
            self,
            devices=tuple(number[device] for device in self.devices),
            parts=tuple(part.renumbered(number) for part in self.parts),
        )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An inventory whose hosts, devices and links are in a definite order and writing."""

    inventory: Inventory
    """Devices of a host adjoin, in the order of ``modules``, where the order is canonical."""
    modules: tuple[Module, ...]
    """Devices of every host, as indices into the inventory's."""

    @cached_property
    def looks(self) -> tuple[Look, ...]:
        """Looks of the devices, in the order of devices."""
        return tuple(map(look_of, self.inventory.devices))

    @cached_property
    def speeds(self) -> tuple[Look, ...]:
        """Looks of the devices without their memory, in the order of devices."""
        return tuple(map(_speed_of, self.looks))

    @cached_property
    def equal_hosts(self) -> tuple[tuple[int, ...], ...]:
        """Hosts that nothing tells apart, together, in order."""
        return self._hosts_by(lambda form: form)

    @cached_property
    def equally_fast_hosts(self) -> tuple[tuple[int, ...], ...]:
        """Hosts that only memory tells apart, together, in order."""
        return self._hosts_by(lambda form: (tuple(sorted(map(_speed_of, form[0]))), form[1]))

    def _hosts_by(self, key: Callable[[Form], object]) -> tuple[tuple[int, ...], ...]:
        equal: dict[tuple[object, str], list[int]] = {}
        for index, (host, module) in enumerate(zip(self.inventory.hosts, self.modules, strict=True)):
            equal.setdefault((key(module.form), host.transport), []).append(index)
        return tuple(map(tuple, equal.values()))


def canonical_machine(inventory: Inventory) -> Machine:
    """Return the machine with hosts, devices and links in canonical order."""
    hosts = sorted(_modules(inventory), key=lambda host: (-len(host[1].devices), host[1].form, host[0].transport))
    order = [device for _, module in hosts for device in module.devices]
    number = {device: position for position, device in enumerate(order)}
    devices = tuple(inventory.devices[device] for device in order)
    return Machine(
        inventory=dataclasses.replace(inventory, hosts=tuple(host for host, _ in hosts), devices=devices),
        modules=tuple(module.renumbered(number) for _, module in hosts),
    )


def listed_machine(inventory: Inventory) -> Machine:
    """Return the machine with hosts and devices as listed, for what follows the order of the inventory."""
    hosts = _modules(inventory)
    return Machine(
        inventory=dataclasses.replace(inventory, hosts=tuple(host for host, _ in hosts)),
        modules=tuple(module for _, module in hosts),
    )


def _modules(inventory: Inventory) -> list[tuple[Host, Module]]:
    """Return every host, its links written in the canonical way, with the module of its devices."""
    of_host: dict[str, list[int]] = {host.name: [] for host in inventory.hosts}
    for index, device in enumerate(inventory.devices):
        of_host[device.host].append(index)
    return [_host(host, inventory.devices, of_host[host.name]) for host in inventory.hosts]


def _host(host: Host, listed: Sequence[Device], devices: Sequence[int]) -> tuple[Host, Module]:
    """Return a host, written with the link that most of its pairs have and the others, and its module."""
    index = {listed[device].id: device for device in devices}
    own = {frozenset((index[pair.a], index[pair.b])): pair.link for pair in host.pairs}
    links = _Links(
        looks={device: look_of(listed[device]) for device in devices},
        usual=_figures(host.link),
        pairs={pair: _figures(link) for pair, link in own.items()},
    )
    module = links.module(devices)
    if not own:
        return host, module
    written = {_figures(link): link for link in (host.link, *own.values())}
    counted = Counter(links.between(*pair) for pair in combinations(devices, 2))
    usual = max(sorted(counted), key=counted.__getitem__)
    pairs = tuple(
        Pair(a=listed[a].id, b=listed[b].id, link=written[links.between(a, b)])
        for a, b in combinations(module.devices, 2)
        if links.between(a, b) != usual
    )
    return dataclasses.replace(host, link=written[usual], pairs=pairs), module


def _figures(link: Link) -> Figures:
    return link.latency_ns, link.bandwidth_bytes_per_s, tuple(map(astuple, link.sums or ())), link.awake_ns


def _message_ns(figures: Figures) -> int:
    """Return the time of a message of PATH_BYTES."""
    latency_ns, bandwidth_bytes_per_s, _, _ = figures
    return latency_ns + ceil_div(PATH_BYTES * 10**9, bandwidth_bytes_per_s)


@dataclass(frozen=True, kw_only=True)
class _Links:
    """Links between the devices of one host, which are indices into the inventory's."""

    looks: Mapping[int, Look]
    usual: Figures
    pairs: Mapping[frozenset[int], Figures]
    """Links of the pairs that have one of their own."""

    def between(self, one: int, other: int) -> Figures:
        """Return the link of two devices."""
        return self.pairs.get(frozenset((one, other)), self.usual) if self.pairs else self.usual

    def module(self, devices: Sequence[int]) -> Module:
        """Return the module of these devices, with its parts."""
        if len(devices) == 1:
            (device,) = devices
            return Module(devices=(device,), form=((self.looks[device],), ()), kind="device", parts=())
        for link in sorted({self.usual, *self.pairs.values()}):
            components = self._components(devices, link)
            if len(components) > 1:
                return _joined(link, [self.module(component) for component in components])
        order = self._path(canonical_order(devices, self.looks, self.between))
        between = tuple(self.between(*pair) for pair in combinations(order, 2))
        form = (tuple(self.looks[device] for device in order), (1, between))
        return Module(devices=tuple(order), form=form, kind="irregular", parts=())

    def _path(self, devices: Sequence[int]) -> list[int]:
        """Return devices along a path from the first, that goes on over the fastest link, to the first on a tie."""
        path, left = [devices[0]], list(devices[1:])
        while left:
            nanoseconds = {device: _message_ns(self.between(path[-1], device)) for device in left}
            path.append(min(left, key=nanoseconds.__getitem__))
            left.remove(path[-1])
        return path

    def _components(self, devices: Sequence[int], link: Figures) -> list[list[int]]:
        """Return the components of devices that any other link than this one connects, by their first devices."""
        if not self.pairs:
            return [[device] for device in devices]
        components: list[list[int]] = []
        left = list(devices)
        while left:
            component = [left.pop(0)]
            for device in component:  # which grows
                component += [other for other in left if self.between(device, other) != link]
                left = [other for other in left if other not in component]
            components.append(sorted(component))
        return components


def _joined(link: Figures, parts: Sequence[Module]) -> Module:
    ordered = tuple(sorted(parts, key=lambda part: (-len(part.devices), part.form)))
    return Module(
        devices=tuple(device for part in ordered for device in part.devices),
        form=(tuple(look for part in ordered for look in part.form[0]), (0, link, tuple(p.form[1] for p in ordered))),
        kind="joined",
        parts=ordered,
    )
