"""Candidate device sets: which devices may hold a stage or a block together. Optimality is proven over these alone.

Devices are in the canonical order of the machine (:mod:`planner.problem.machine`), in which those of a module adjoin.
So nothing here depends on names, and devices or hosts that nothing tells apart are relabelled, not told apart. The
candidates inside a host are those of its module:

* of equal devices with equal links: runs of consecutive ones. Any other choice is a relabelling of a run, so that
  nothing is lost;
* of equal parts (pairs with a bridge, boards): runs of consecutive devices, across parts, and one candidate of a part
  on each of a run of parts;
* of unlike parts: what the parts offer, in every combination. Where parts are of several devices and there are more
  than MOST_COMBINED combinations: what the parts offer by themselves, and whole parts in every combination, or if these
  are too many runs of all devices;
* of devices with irregular links, and of up to MOST_UNEVEN devices that are not all linked alike: every subset. Of more
  than MOST_IRREGULAR devices with irregular links: runs of consecutive ones, which the fastest links connect.

Over several hosts:

* of equal hosts: a run of two or more, with the same first devices of each class of parts on every host. Where a host
  has more than MOST_PARTS such choices, only whole classes;
* of hosts that have devices of one look, or of one speed whatever their memory, and whatever else they have: from each
  class of equal hosts a run or none, in every combination, with the first n of these devices on each host, for each n;
  and with devices of several such classes that all these hosts have, for every n of each class, or where these are more
  than MOST_PARTS with none or all of it, unless this makes more than MOST_JOINED sets. Where there are more than
  MOST_HOST_SETS combinations of hosts, those of classes of hosts that are equal but for memory; where these are too
  many, runs of the hosts in canonical order, or of more than MOST_HOST_RUNS runs 2, 4, 8, ... adjacent hosts.

Sets over several hosts that are none of these (unlike numbers of devices per host, classes combined differently) are
not candidates. How a set divides attention is enumerated in :mod:`planner.problem.kv_splits`.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations, groupby, product
from typing import TypeVar, TypeVarTuple

from planner.costs.topology import Fabric
from planner.errors import InputError
from planner.problem.machine import Look, Machine, Module
from plans.schema import Inventory

MOST_SETS = 20_000
"""Candidate sets of an inventory at most; the search is over combinations of them."""

MOST_PARTS = 16
"""Parts of a host that sets over equal hosts consist of at most; where there are more, only whole classes count."""

MOST_COMBINED = 5_000
"""Combinations of what unlike parts of a module offer, of several devices some of them."""

MOST_HOST_SETS = 64
"""Combinations of hosts over which devices of one look form sets; where there are more, only runs of hosts do."""

MOST_JOINED = 1_000
"""Sets over several hosts; where there are more, only equal hosts join with devices of several looks."""

MOST_HOST_RUNS = 100
"""Runs of unequal hosts over which devices of one look form sets."""

MOST_UNEVEN = 6
"""Devices of a module that are not all linked alike, and of which every subset is a candidate."""

MOST_IRREGULAR = 8
"""Devices of an irregular module of which every subset is a candidate."""

Price = TypeVar("Price")

Also = TypeVarTuple("Also")

Members = tuple[int, ...]
"""Devices of one host, ascending."""

Signature = tuple[tuple[Look, ...], tuple[int, ...], tuple[object, ...]]
"""What devices are and how they are linked: looks, parts per host, links of each part."""

Known = dict[tuple[tuple[object, ...], tuple[object, ...]], Price]
"""Prices by signature, and by what else they depend on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceSet:
    """Devices that may hold a stage or a block, in the order of the candidates; the first is the leader."""

    devices: tuple[int, ...]
    """Indices in the machine; those of a host adjoin."""
    hosts: tuple[int, ...]
    """Hosts of the devices, ascending."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Candidate device sets of a machine."""

    machine: Machine
    listed: tuple[str, ...] = ()
    """Ids of devices in the order in which sets list them, before all others; by default that of the machine."""

    @property
    def inventory(self) -> Inventory:
        """Inventory in the order of the machine."""
        return self.machine.inventory

    @cached_property
    def fabric(self) -> Fabric:
        """Links of the machine."""
        return Fabric(inventory=self.machine.inventory)

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """Number of the host and look of every device, in the order of devices."""
        keys = list(zip(self.fabric.host_of, self.machine.looks, strict=True))
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return tuple(numbers[key] for key in keys)

    @cached_property
    def sets(self) -> tuple[DeviceSet, ...]:
        """All candidates, of one host, then of several; raise InputError where they are too many to search."""
        self._refuse_many()
        inside = [
            DeviceSet(devices=members, hosts=(host,))
            for host, module in enumerate(self.machine.modules)
            for members in self._inside(module)
        ]
        return tuple(map(self._in_order, (*sorted(inside, key=_size), *sorted(self._wide, key=_size))))

    @cached_property
    def count(self) -> int:
        """Number of candidates, or a few more; those of several hosts do not count where the others are too many."""
        inside = sum(map(_count, self.machine.modules))
        return inside + len(self._wide) if inside <= MOST_SETS else inside

    @cached_property
    def order(self) -> tuple[int, ...]:
        """All devices, in an order in which every set lists its own."""
        places = {name: place for place, name in enumerate(self.listed)}
        ids = [device.id for device in self.inventory.devices]
        place = [places.get(name, len(places) + device) for device, name in enumerate(ids)]
        first = [min(place[device] for device in devices) for devices in self.fabric.of_host]
        return tuple(sorted(range(len(ids)), key=lambda d: (first[self.fabric.host_of[d]], place[d])))

    def _in_order(self, candidate: DeviceSet) -> DeviceSet:
        if not self.listed:
            return candidate
        return replace(candidate, devices=tuple(sorted(candidate.devices, key=self.order.index)))

    @property
    def singles(self) -> tuple[DeviceSet, ...]:
        """Every device alone, in the order of the machine, but CPUs after the GPUs of their host."""
        devices = self.inventory.devices
        host_of = self.fabric.host_of
        order = sorted(range(len(devices)), key=lambda d: (host_of[d], devices[d].kind == "cpu", d))
        return tuple(DeviceSet(devices=(device,), hosts=(host_of[device],)) for device in order)

    @cached_property
    def signature(self) -> Callable[[tuple[int, ...]], Signature]:
        """Return a key that is equal for devices which differ only in names: looks, parts per host, and links.

        It is the same in another machine with more or fewer hosts.
        """

        def signature(devices: tuple[int, ...]) -> Signature:
            looks = tuple(self.machine.looks[device] for device in devices)
            parts = [tuple(members) for _, members in groupby(devices, key=self.fabric.host_of.__getitem__)]
            return looks, tuple(map(len, parts)), tuple(map(self._links, parts))

        return cache(signature)

    def priced_once(
        self, price: Callable[[DeviceSet], Price], known: Known[Price], *also: object
    ) -> Callable[[DeviceSet], Price]:
        """Return ``price`` with its results kept in ``known``: sets that differ only in names are priced once.

        ``also``: what else the price depends on.
        """

        def kept(device_set: DeviceSet) -> Price:
            key = self.signature(device_set.devices), also
            if key not in known:
                known[key] = price(device_set)
            return known[key]

        return kept

    def parts_priced_once(
        self, price: Callable[[tuple[int, ...], *Also], Price], known: Known[Price]
    ) -> Callable[[tuple[int, ...], *Also], Price]:
        """Return the same of a price of some devices of a set; of these devices alone where others slow them down."""
        named = self.fabric.shares_cores
        prices = {} if named else known

        def kept(devices: tuple[int, ...], *also: *Also) -> Price:
            key = devices if named else self.signature(devices), also
            if key not in prices:
                prices[key] = price(devices, *also)
            return prices[key]

        return kept

    def _links(self, members: Members) -> tuple[object, ...]:
        """Return the links among devices of one host, in their order; one where all are alike."""
        if len(members) == 1:
            return ()
        host = self.inventory.hosts[self.fabric.host_of[members[0]]]
        if not host.pairs:
            return (host.link,)
        return tuple(self.fabric.inner_link(pair, 0) for pair in combinations(members, 2))

    # ---- inside a host ----

    def _inside(self, module: Module) -> list[Members]:
        """Return the candidates of a module, each once."""
        if _offers_all(module):
            return [c for size in range(1, len(module.devices) + 1) for c in combinations(module.devices, size)]
        if module.kind == "irregular":
            return list(map(tuple, _runs(module.devices, 1)))
        if module.kind == "device":
            return [module.devices]
        offered = [self._of_equal_parts(parts) for parts in module.classes]
        if _combines_all(module):
            return _combined(offered)
        runs = [_whole_runs(parts) for parts in module.classes] if _combines_whole(module) else []
        wide = _combined(runs) if runs else map(tuple, _runs(module.devices, 1))
        return list(dict.fromkeys((*(members for own in offered for members in own), *wide)))

    def _of_equal_parts(self, parts: Sequence[Module]) -> list[Members]:
        """Return runs of the devices of equal parts, and one candidate of a part on each of a run of parts."""
        line = [device for part in parts for device in part.devices]
        runs = list(map(tuple, _runs(line, 1)))
        first = parts[0].devices
        if len(first) == 1:
            return runs
        for members in self._inside(parts[0]):
            places = [first.index(device) for device in members]
            for chosen in _runs(parts, 1):
                runs.append(tuple(part.devices[place] for part in chosen for place in places))
        return list(dict.fromkeys(runs))

    def _refuse_many(self) -> None:
        """Raise InputError, naming the host with most candidates, where there are more than MOST_SETS."""
        total = self.count
        if total > MOST_SETS:
            inside = list(map(_count, self.machine.modules))
            worst = max(range(len(inside)), key=inside.__getitem__)
            module = self.machine.modules[worst]
            apart = " or linked unlike" if self.inventory.hosts[worst].pairs else ""
            raise InputError(
                f"inventory: {total} candidate groups of devices, expected at most {MOST_SETS}: host "
                f"{self.inventory.hosts[worst].name} has {len(module.classes)} classes of devices that are unlike"
                f"{apart}: list fewer of them, or two hosts with a network like their link between them, or give those "
                "of one type the same memory, reserve, rates and links"
            )

    # ---- over several hosts ----

    @cached_property
    def _wide(self) -> tuple[DeviceSet, ...]:
        """Sets over several hosts, each once."""
        if self.inventory.network is None:
            return ()
        equal = tuple(self._of_equal_hosts())
        sets = dict.fromkeys((*equal, *self._of_common_classes(several=True)))
        if len(sets) > MOST_JOINED:
            sets = dict.fromkeys((*equal, *self._of_common_classes(several=False)))
        return tuple(sets)

    def _of_equal_hosts(self) -> Iterator[DeviceSet]:
        """Yield the same part of every host of a run of equal hosts."""
        for equal in self.machine.equal_hosts:
            modules = [self.machine.modules[host] for host in equal]
            for places in _parts(modules[0]) if len(equal) > 1 else ():
                for run in _runs(range(len(equal)), 2):
                    devices = tuple(modules[i].devices[place] for i in run for place in places)
                    yield DeviceSet(devices=devices, hosts=tuple(equal[i] for i in run))

    def _of_common_classes(self, *, several: bool) -> Iterator[DeviceSet]:
        """Yield devices of one look or speed from hosts that have such, or ``several`` from hosts that have them."""
        for keys in (self.machine.looks, self.machine.speeds):
            classes: dict[Look, dict[int, list[int]]] = {}
            """Devices of each class on each host."""
            for host, module in enumerate(self.machine.modules):
                for device in module.devices:
                    classes.setdefault(keys[device], {}).setdefault(host, []).append(device)
            for hosts in dict.fromkeys(tuple(own) for by_host in classes.values() for own in self._host_sets(by_host)):
                common = [by_host for by_host in classes.values() if all(host in by_host for host in hosts)]
                for counts in _common_counts(common, hosts, several=several):
                    chosen = [sorted(d for by_host, n in counts for d in by_host[host][:n]) for host in hosts]
                    yield DeviceSet(devices=tuple(d for part in chosen for d in part), hosts=hosts)

    def _host_sets(self, owners: Collection[int]) -> Iterator[Sequence[int]]:
        """Yield the combinations of two or more hosts: of each class of equal hosts a run or none."""
        for equal in (self.machine.equal_hosts, self.machine.equally_fast_hosts):
            classes = [own for hosts in equal if (own := [host for host in hosts if host in owners])]
            if math.prod(_run_count(len(own)) + 1 for own in classes) <= MOST_HOST_SETS:
                for chosen in product(*([(), *_runs(own, 1)] for own in classes)):
                    hosts = [host for run in chosen for host in run]
                    if len(hosts) > 1:
                        yield hosts
                return
        line = sorted(owners)
        yield from _runs(line, 2) if _run_count(len(line) - 1) <= MOST_HOST_RUNS else _blocks(line)


_Class = Mapping[int, Sequence[int]]
"""Devices that are alike, by host."""


def _common_counts(
    common: Sequence[_Class], hosts: Sequence[int], *, several: bool
) -> Iterator[Sequence[tuple[_Class, int]]]:
    """Yield how many devices each host contributes at most: of one class that they have in common, or of several."""
    largest = [max(len(by_host[host]) for host in hosts) for by_host in common]
    for by_host, most in zip(common, largest, strict=True):
        for count in range(1, most + 1):
            yield [(by_host, count)]
    if several and len(common) > 1:
        whole = math.prod(most + 1 for most in largest) - 1 > MOST_PARTS
        for counts in product(*((0, most) if whole else range(most + 1) for most in largest)):
            if any(counts):
                yield list(zip(common, counts, strict=True))


def _size(candidate: DeviceSet) -> tuple[int, tuple[int, ...]]:
    return len(candidate.devices), candidate.devices


def _offers_all(module: Module) -> bool:
    """Tell whether every subset of a module's devices is a candidate."""
    if module.kind == "irregular":
        return len(module.devices) <= MOST_IRREGULAR
    return len(module.devices) <= MOST_UNEVEN and any(part.kind != "device" for part in module.parts)


def _count(module: Module) -> int:
    """Return how many candidates a module has, or a few more."""
    size = len(module.devices)
    if _offers_all(module):
        return int(2**size) - 1
    if module.kind != "joined":
        return _run_count(size)
    if _combines_all(module):
        return _product(_count_equal(parts) for parts in module.classes)
    own = sum(_count_equal(parts) for parts in module.classes)
    whole = _product(_run_count(len(parts)) for parts in module.classes)
    return own + (whole if _combines_whole(module) else _run_count(size))


def _combines_all(module: Module) -> bool:
    """Tell whether all that the parts of a joined module offer is combined."""
    if all(part.kind == "device" for part in module.parts):
        return True
    return _product(_count_equal(parts) for parts in module.classes) <= MOST_COMBINED


def _combines_whole(module: Module) -> bool:
    return _product(_run_count(len(parts)) for parts in module.classes) <= MOST_COMBINED


def _product(counts: Iterable[int]) -> int:
    """Return how many combinations there are of one of so many or none, less the one of none."""
    total = 1
    for count in counts:
        total *= 1 + count
    return total - 1


def _combined(offered: Iterable[Iterable[Members]]) -> list[Members]:
    """Return every combination of one or none of each."""
    choices = product(*([(), *own] for own in offered))
    return [members for chosen in choices if (members := tuple(device for part in chosen for device in part))]


def _whole_runs(parts: Sequence[Module]) -> list[Members]:
    return [tuple(device for part in run for device in part.devices) for run in _runs(parts, 1)]


def _count_equal(parts: Sequence[Module]) -> int:
    size = len(parts[0].devices)
    return _run_count(size * len(parts)) + (_run_count(len(parts)) * _count(parts[0]) if size > 1 else 0)


def _parts(module: Module) -> list[tuple[int, ...]]:
    """Return the parts of a host, as places in its order, that it may contribute to a set over equal hosts."""
    number = {device: place for place, device in enumerate(module.devices)}
    classes = module.classes or ((module,),)
    lines = [[number[device] for part in parts for device in part.devices] for parts in classes]
    whole = math.prod(len(line) + 1 for line in lines) - 1 > MOST_PARTS
    offered = [[line[:size] for size in ((0, len(line)) if whole else range(len(line) + 1))] for line in lines]
    return [places for chosen in product(*offered) if (places := tuple(p for line in chosen for p in line))]


def _runs(items: Sequence[Price], least: int) -> Iterator[Sequence[Price]]:
    """Yield every run of ``least`` consecutive items or more."""
    for start in range(len(items)):
        for stop in range(start + least, len(items) + 1):
            yield items[start:stop]


def _blocks(items: Sequence[Price]) -> Iterator[Sequence[Price]]:
    """Yield the items by twos, fours, eights, ..., whole blocks from the first on, and all of them."""
    size = 2
    while size < len(items):
        for stop in range(size, len(items) + 1, size):
            yield items[stop - size : stop]
        size *= 2
    yield items


def _run_count(items: int) -> int:
    return items * (items + 1) // 2
