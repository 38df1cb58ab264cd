"""Least costs of groups over more hosts than were searched of equal ones, whatever devices they consist of.

The relaxation: every device has the best figure of any in each respect, every host the best link and as many devices as
the largest. Then a group is a number of hosts and of devices on the host where it has most, and no message among fewer
takes longer; so one bound holds for all groups over so many hosts or up to a quarter more, but at most up to the next
power of two, with the messages of the fewest and the shared work of the most. However attention is divided, its shares
together are no less than the whole, so that the slowest is no less than its part in equal parts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from planner.costs.roofline import sum_latency_ns
from planner.costs.rounding import LOWERED
from planner.costs.shares import BaseShares, DraftShares
from planner.costs.topology import Fabric
from planner.integers import rounds
from planner.problem.device_sets import DeviceSet
from planner.problem.draft_block import passes_ns
from planner.problem.links import Links
from planner.problem.quantum import Quanta
from planner.problem.stage_groups import layer_ns
from planner.problem.vocab_blocks import embed_block, lm_head_block
from planner.solver.bounds.in_use import WiderGroups, divided_ns
from planner.solver.problem import Axis, Option
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
    size = max(sum(device.host == host.name for device in inventory.devices) for host in inventory.hosts)
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
        flops_per_s=max(device.flops_per_s for device in others),
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
    )


@dataclass(frozen=True, kw_only=True)
class Wider:
    """Bounds of the groups and options over more hosts than ``searched``.

    Of each class of equal hosts so many are searched. What has no more hosts of any class is in the problem; all else
    has more hosts.
    """

    base: BaseShares
    draft: DraftShares | None
    row_unit: int
    machine: Inventory
    """One of those that :func:`best_machines` returns."""
    searched: int

    def groups(self) -> Iterator[WiderGroups]:
        """Yield a bound for every number of devices on a host, and every range of numbers of hosts."""
        ranges = list(self._ranges())
        sets = [device_set for device_set, _ in ranges]
        blocks = [
            block(self.base, self._links, self._quanta, sets, self.row_unit) for block in (embed_block, lm_head_block)
        ]
        tables = zip(*(block.options for block in blocks), strict=True)
        axes = [block.axes[0] for block in blocks]
        for (device_set, most_hosts), options in zip(ranges, tables, strict=True):
            yield self._bound(device_set, most_hosts, tuple(zip(options, axes, strict=True)))

    def _ranges(self) -> Iterator[tuple[DeviceSet, int]]:
        """Yield the fewest hosts of a range, with so many devices on each, and how many the most are."""
        hosts = len(self.machine.hosts)
        size = len(self.machine.devices) // hosts
        fewest = self.searched + 1
        while fewest <= hosts:
            most = min(hosts, fewest + fewest // 4, 1 << (fewest - 1).bit_length())
            for devices in range(1, size + 1):
                members = tuple(h * size + d for h in range(fewest) for d in range(devices))
                yield DeviceSet(devices=members, hosts=tuple(range(fewest))), most
            fewest = most + 1

    @cached_property
    def _links(self) -> Links:
        return Links(fabric=Fabric(inventory=self.machine))

    @cached_property
    def _quanta(self) -> Quanta:
        return Quanta(self.base, self.machine.devices)

    def _bound(self, device_set: DeviceSet, most_hosts: int, tables: Sequence[tuple[Option, Axis]]) -> WiderGroups:
        """Return the bound with the messages of ``device_set``, and as many devices on most hosts to share the work."""
        base, links = self.base, self._links
        largest = len(device_set.devices) // len(device_set.hosts)
        most_devices = most_hosts * largest
        shared = [self._shared_ns(kind, most_devices) for kind in range(len(base.kinds))]
        blocks = [
            (option.splits[0].ns + divided_ns(axis.count, [axis.each_ps[0]] * most_devices), option.receive)
            for option, axis in tables
        ]
        if self.draft is not None:
            features = step.step_features(base.model, self.draft.draft, base.options).nbytes
            blocks.append((self._draft_ns(self.draft, device_set, most_devices), links.receive(device_set, features)))
        return WiderGroups(
            most_hosts=most_hosts,
            least_devices=largest + len(device_set.hosts) - 1,
            layer_ns=tuple(layer_ns(base, links, device_set.devices, k) + ns for k, ns in enumerate(shared)),
            network_hop_ns=links.receive(device_set, step.hop_bytes(base.model, base.draft, base.options)).far_ns,
            told_ns=links.round_ns(device_set.devices[:largest], step.message_bytes(base.options)) * rounds(largest),
            first=links.receive(device_set, step.hidden_bytes(base.model, base.options)),
            blocks=tuple(blocks),
        )

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
