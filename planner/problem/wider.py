"""Least costs of groups over more hosts than were searched of equal ones, whatever devices they consist of.

The relaxation: every device has the best figure of any in each respect, every host the best link and as many devices as
the largest. Then a group is a number of hosts and of devices on the host where it has most, and no message among fewer
takes longer; so one bound holds for all groups over so many hosts or up to a quarter more, but at most up to the next
power of two, with the messages of the fewest and the shared work of the most. However attention is divided, its shares
together are no less than the whole, so that the slowest is no less than its part in equal parts.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

from planner.costs.roofline import score_flops_per_s, sum_latency_ns
from planner.costs.rounding import LOWERED
from planner.costs.shares import BaseShares, DraftShares
from planner.costs.topology import Fabric
from planner.integers import rounds
from planner.problem.device_sets import DeviceSet
from planner.problem.draft_block import passes_ns
from planner.problem.links import NOTHING, Links
from planner.problem.stage_groups import layer_ns
from planner.problem.vocab_blocks import embed_ns, lm_head_ns
from planner.solver.bounds.in_use import WiderGroups, divided_ns
from planner.solver.problem import Receive
from plans import step
from plans.kv import whole_heads
from plans.schema import GroupSum, Inventory, Link


def best_machines(inventory: Inventory) -> tuple[Inventory, ...]:
    """Return machines of as many equal hosts as the inventory has, of which nothing is slower than anything of it.

    One is of CPUs, for groups of CPUs alone, and one of accelerators, for all others: a group waits for its member with
    the most fixed work, which depends on the kind of device.
    """
    kinds = sorted({device.kind for device in inventory.devices})
    return tuple(_best_machine(inventory, kind) for kind in kinds)


def _best_machine(inventory: Inventory, kind: Literal["cuda", "cpu"]) -> Inventory:
    size = max(Counter(device.host for device in inventory.devices).values())
    host = replace(
        inventory.hosts[0],
        link=_best_link(
            [link for host in inventory.hosts for link in (host.link, *(pair.link for pair in host.pairs))], size
        ),
        pairs=(),
    )
    devices = [device for device in inventory.devices if device.kind == kind]
    others = devices if kind == "cpu" else inventory.devices
    device = replace(
        devices[0],
        bandwidth_bytes_per_s=max(device.bandwidth_bytes_per_s for device in others),
        flops_per_s=max(max(device.flops_per_s, score_flops_per_s(device)) for device in others),
        overhead_ns=min(device.overhead_ns for device in devices),
        pass_ns=_least([device.pass_ns for device in devices]),
        table_ns=_least([device.table_ns for device in devices]),
        measured=None,
        together=None,
    )
    names = range(len(inventory.hosts))
    return replace(
        inventory,
        hosts=tuple(replace(host, name=f"{h}") for h in names),
        devices=tuple(replace(device, id=f"{h}-{d}", host=f"{h}") for h in names for d in range(size)),
    )


def _least(times_ns: Sequence[int | None]) -> int | None:
    """Return the least of some fixed times; 0 where only some devices have their own, and None where none has."""
    return None if all(ns is None for ns in times_ns) else min(ns or 0 for ns in times_ns)


def _best_link(links: Sequence[Link], size: int) -> Link:
    """Return a link that is as good as any in each respect, for groups of up to ``size`` devices of a host."""
    sums = (GroupSum(members=n, ns=min(sum_latency_ns(link, n) for link in links)) for n in range(2, size + 1))
    return Link(
        sums=tuple(sums) if any(link.sums for link in links) else None,
        link_class=links[0].link_class,
        latency_ns=min(link.latency_ns for link in links),
        bandwidth_bytes_per_s=max(link.bandwidth_bytes_per_s for link in links),
        awake_ns=min(_awake_ns(link) for link in links) if any(link.awake_ns is not None for link in links) else None,
    )


def _awake_ns(link: Link) -> int:
    return link.latency_ns if link.awake_ns is None else link.awake_ns


def _told_ns(links: Links, members: Sequence[int], message_bytes: int) -> int:
    """Return the least time of telling devices of a host, awake or not."""
    rounds_ns = links.round_ns(members, message_bytes) * rounds(len(members))
    awake_ns = links.awake_ns(members, message_bytes)
    return rounds_ns if awake_ns is None else min(rounds_ns, awake_ns)


@dataclass(frozen=True, kw_only=True)
class Wider:
    """Bounds of the groups and options over more hosts than are searched of each class of equal ones.

    What has no more hosts of any class is in the problem; all else has more hosts.
    """

    base: BaseShares
    draft: DraftShares | None
    row_unit: int
    machine: Inventory
    """One of those that :func:`best_machines` returns."""

    def groups(self, searched: int) -> Iterator[WiderGroups]:
        """Yield a bound for every number of devices on a host, and every range of numbers of hosts."""
        for base, block in zip(self.base_groups(searched), self._drafts(searched), strict=True):
            yield replace(base, blocks=(*base.blocks, *block))

    def base_groups(self, searched: int) -> Iterator[WiderGroups]:
        """Yield the same without the drafter."""
        return (self._bound(*of_range) for of_range in self._ranges(searched))

    def _drafts(self, searched: int) -> Iterator[tuple[tuple[float, Receive], ...]]:
        """Yield the drafter's block for each of these, none without one."""
        return (self._draft_block(*of_range) for of_range in self._ranges(searched))

    def _ranges(self, searched: int) -> Iterator[tuple[int, int, int]]:
        """Yield the fewest and the most hosts of each range, with each number of devices on a host.

        Ranges begin behind powers of two, so that nearly all are the same whatever number of hosts was searched.
        """
        hosts = len(self.machine.hosts)
        fewest = searched + 1
        while fewest <= hosts:
            most = min(hosts, fewest + fewest // 4, 1 << (fewest - 1).bit_length())
            for devices in range(1, self._size + 1):
                yield fewest, most, devices
            fewest = most + 1

    @cached_property
    def _size(self) -> int:
        """Devices of a host."""
        return len(self.machine.devices) // len(self.machine.hosts)

    @cached_property
    def _links(self) -> Links:
        return Links(fabric=Fabric(inventory=self.machine))

    @cached_property
    def _set(self) -> Callable[[int, int], DeviceSet]:
        """Return so many devices on each of so many hosts."""

        def first(hosts: int, devices: int) -> DeviceSet:
            members = tuple(h * self._size + d for h in range(hosts) for d in range(devices))
            return DeviceSet(devices=members, hosts=tuple(range(hosts)))

        return cache(first)

    @cached_property
    def _bound(self) -> Callable[[int, int, int], WiderGroups]:
        """Return the bound with the messages of the fewest hosts, and the devices of the most to share the work."""
        return cache(self._new_bound)

    def _new_bound(self, fewest: int, most_hosts: int, devices: int) -> WiderGroups:
        base, links, device_set = self.base, self._links, self._set(fewest, devices)
        members, most_devices = device_set.devices, most_hosts * devices
        shared = [self._shared_ns(kind, most_devices) for kind in range(len(base.kinds))]
        hop = links.receive(device_set, step.hop_bytes(base.model, base.draft, base.options))
        rows_ps = base.rows(self.row_unit).ps(self.machine.devices[0])
        rows_ns = divided_ns(base.model.vocab_size // self.row_unit, [rows_ps] * most_devices)
        return WiderGroups(
            most_hosts=most_hosts,
            least_devices=devices + fewest - 1,
            layer_ns=tuple(layer_ns(base, links, members, k) + ns for k, ns in enumerate(shared)),
            network_hop_ns=hop.far_ns,
            told_ns=_told_ns(links, members[:devices], step.message_bytes(base.options)),
            first=links.receive_awake(device_set, step.hidden_bytes(base.model, base.options)),
            blocks=((embed_ns(base, links, members), NOTHING), (lm_head_ns(base, links, members) + rows_ns, hop)),
        )

    @cached_property
    def _draft_block(self) -> Callable[[int, int, int], tuple[tuple[float, Receive], ...]]:
        return cache(self._new_draft_block)

    def _new_draft_block(self, fewest: int, most_hosts: int, devices: int) -> tuple[tuple[float, Receive], ...]:
        if self.draft is None:
            return ()
        device_set = self._set(fewest, devices)
        features = step.step_features(self.base.model, self.draft.draft, self.base.options).nbytes
        ns = self._draft_ns(self.draft, device_set, most_hosts * devices)
        return ((ns, self._links.receive(device_set, features)),)

    def _shared_ns(self, kind: int, most_devices: int) -> float:
        """Return the time of a layer's MLP units and attention in equal parts."""
        base, device = self.base, self.machine.devices[0]
        units = divided_ns(base.kinds[kind].mlp.units, [base.unit(kind).ps(device)] * most_devices)
        whole = base.attention(kind, whole_heads(base.kinds[kind].attention.num_kv_heads))
        return units + LOWERED * whole.ns(device) / most_devices

    def _draft_ns(self, shares: DraftShares, device_set: DeviceSet, most_devices: int) -> float:
        device = self.machine.devices[0]
        units = divided_ns(shares.draft.mlp.units, [shares.unit_ps(device)] * most_devices)
        bundles, bundle_ps = shares.draft.draft_vocab_size // self.row_unit, shares.rows_ps(device, self.row_unit)
        rows = divided_ns(bundles, [bundle_ps] * most_devices)
        whole = whole_heads(shares.draft.attention.num_kv_heads)
        passes = enumerate(times for _, times in shares.passes)
        attention = sum(times * shares.attention(number, whole).ns(device) for number, times in passes)
        return passes_ns(shares, self._links, device_set.devices) + units + rows + LOWERED * attention / most_devices
