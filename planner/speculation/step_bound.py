"""A lower bound of the step time on devices of a machine: without a solver, in a millisecond.

Each layer, and each pass of the drafter, takes no less than on the best number g of devices, where the g fastest share
what is divided and exchange their sums over the best links; what is whole on each member, and fixed work, take no less
than on the best device. A part holds layers on several groups at most, none of which is faster than that.

**Several hosts.** Every group is inside a *region* r: a host, or devices of hosts that have some in common
(:func:`regions_of`). A region has memory C_r. With t_kr the least time of a layer of kind k there, b_k its bytes and
n_k the number of such layers, all layers take at least, for any prices p_r >= 0 of a byte,

    sum over k of n_k min over r of (t_kr + p_r b_k) - sum over r of p_r C_r

Prices are those that are best for the mean of all layers: regions are filled in order of time up to one, and a byte of
those before it costs what a layer takes more there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.costs.fixed_work import CAPTURED
from planner.costs.roofline import all_reduce_ns
from planner.costs.rounding import LOWERED
from planner.costs.shares import BaseShares, DraftShares
from planner.integers import PS_PER_NS
from planner.problem.machine import Look, Machine
from planner.problem.usable import part_of
from planner.speculation.draft_bound import MOST_MEMBERS, best_tiers, least_draft_ns
from plans import step
from plans.kv import KvShare, whole_heads
from plans.schema import Device, Draft, Inventory, Model, Options


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Devices inside which a group may be."""

    inventory: Inventory
    equal: int = 1
    """How many such regions there are that nothing tells apart."""


def regions_of(machine: Machine) -> tuple[Region, ...]:
    """Return the regions of a machine, in one of which every candidate set is (:mod:`planner.problem.device_sets`).

    Each host; and for each speed that devices of several hosts have, on those hosts all devices of which others of them
    have some of the same speed, too. A set over hosts takes of each the same classes of devices.
    """
    devices_of = [module.devices for module in machine.modules]
    hosts = [Region(inventory=_part(machine, devices_of[own[0]]), equal=len(own)) for own in machine.equal_hosts]
    owners: dict[Look, list[int]] = {}
    for host, devices in enumerate(devices_of):
        for speed in dict.fromkeys(machine.speeds[device] for device in devices):
            owners.setdefault(speed, []).append(host)
    several = dict.fromkeys(tuple(own) for own in owners.values() if len(own) > 1)
    wide = (
        [d for host in own for d in devices_of[host] if len(set(owners[machine.speeds[d]]).intersection(own)) > 1]
        for own in several
    )
    return (*hosts, *(Region(inventory=_part(machine, devices)) for devices in wide))


def _part(machine: Machine, devices: Sequence[int]) -> Inventory:
    return part_of(machine.inventory, [machine.inventory.devices[device].id for device in devices])


@dataclass(frozen=True, kw_only=True)
class StepBound:
    """The bound for a model with a drafter, or without one, and these options."""

    model: Model
    draft: Draft | None
    options: Options

    def least_ns(
        self, inventory: Inventory, draft_ns: int | None = None, regions: Sequence[Region] | None = None
    ) -> float:
        """Return the bound on the devices of an inventory; infinite where they have not the memory.

        ``draft_ns``: of the drafter, where it is known; ``regions``: inside one of which every group is, by default the
        inventory.
        """
        own_ns = self.draft_ns(inventory) if draft_ns is None else draft_ns
        return (
            self.base_ns(inventory, (Region(inventory=inventory),) if regions is None else regions) + own_ns * LOWERED
        )

    def base_ns(self, inventory: Inventory, regions: Sequence[Region]) -> float:
        """Return the same of the base's part of a step."""
        head_ns = self._shared_ns([(self._head_ps(device),) for device in inventory.devices], [0])
        return (head_ns + self._layers_ns(regions)) * LOWERED + self.fixed_ns(inventory)

    def draft_ns(self, inventory: Inventory) -> int:
        """Return the bound of the drafter's passes alone, 0 without a drafter."""
        return 0 if self._drafter is None else least_draft_ns(self._drafter, inventory)

    def parts_ns(self, device: Device) -> tuple[float, ...]:
        """Return the time of each divided part of a step if a device had all of it, in a definite order of parts."""
        parts = [count * ps for kind, count in enumerate(self._layers) for ps in self._layer_ps(kind, device) if count]
        return tuple(max(1, ps) / PS_PER_NS for ps in (*parts, self._head_ps(device)))

    def fixed_ns(self, inventory: Inventory) -> float:
        """Return what a step takes beyond its divided parts at least, on any devices of an inventory."""
        of_layers = (
            count * min(CAPTURED.layer_ns(device, layers) for device in inventory.devices)
            for count, layers in zip(self._layers, self._base.kinds, strict=True)
        )
        tables = min(
            CAPTURED.embed_ns(device) + CAPTURED.lm_head_ns(device, walks=False) for device in inventory.devices
        )
        return (sum(of_layers) + tables) * LOWERED

    def fixed_draft_ns(self, inventory: Inventory) -> int:
        """Return the fixed work of the drafter's passes at least, on any devices of an inventory; 0 without one."""
        if self._drafter is None:
            return 0
        passes, layers = sum(times for _, times in self._drafter.passes), self._drafter.draft.num_layers
        of_device = (passes * CAPTURED.pass_ns(d, layers) + CAPTURED.draft_step_ns(d) for d in inventory.devices)
        return min(of_device)

    @cached_property
    def _base(self) -> BaseShares:
        return BaseShares(model=self.model, draft=self.draft, options=self.options)

    @cached_property
    def _drafter(self) -> DraftShares | None:
        if self.draft is None:
            return None
        return DraftShares(model=self.model, draft=self.draft, options=self.options)

    @cached_property
    def _layers(self) -> tuple[int, ...]:
        """Layers of each kind."""
        kinds = [(layers.attention, layers.mlp) for layers in self._base.kinds]
        counts = [0] * len(kinds)
        for layer in range(self.model.num_layers):
            own = step.layer_class(self.model, layer)
            counts[kinds.index((own.attention, own.mlp))] += 1
        return tuple(counts)

    @cached_property
    def _known(self) -> dict[tuple[object, ...], tuple[int, ...]]:
        return {}

    def _layer_ps(self, kind: int, device: Device) -> tuple[int, ...]:
        """Return the attention and the MLP of a layer, whole on a device."""
        rates = device.bandwidth_bytes_per_s, device.flops_per_s, device.measured
        key = kind, device.kind, *rates, device.compute_capability
        if key not in self._known:
            layers = self._base.kinds[kind]
            attention = self._base.attention(kind, whole_heads(layers.attention.num_kv_heads)).ps(device)
            self._known[key] = attention, layers.mlp.units * self._base.unit(kind).ps(device)
        return self._known[key]

    def _head_ps(self, device: Device) -> int:
        return self._base.rows(self.model.vocab_size).ps(device)

    def _layers_ns(self, regions: Sequence[Region]) -> float:
        """Return the least time of all layers, each of which is inside a region."""
        known = [
            (times, region.equal * room) for region in regions for times, room in (self._region(region.inventory),)
        ]
        count = sum(self._layers)
        mean = [sum(n * ns for n, ns in zip(self._layers, times, strict=True)) / count for times, _ in known]
        nbytes = sum(n * own for n, own in zip(self._layers, self._layer_bytes, strict=True)) / count
        left, last = float(count), math.inf
        for region in sorted(range(len(known)), key=mean.__getitem__):
            left -= known[region][1] / nbytes
            last = mean[region]
            if left <= 0:
                break
        if left > 0:
            return math.inf
        prices = [max(0.0, last - ns) / nbytes for ns in mean]
        total = -sum(price * room for price, (_, room) in zip(prices, known, strict=True))
        for kind, (layers, own) in enumerate(zip(self._layers, self._layer_bytes, strict=True)):
            times_of = ((price, times[kind]) for price, (times, _) in zip(prices, known, strict=True))
            total += layers * min(ns + price * own for price, ns in times_of)
        return total

    def _region(self, region: Inventory) -> tuple[tuple[float, ...], int]:
        """Return the least time of a layer of each kind inside a region, and its memory for layers.

        Where all layers are of one kind, that is whole layers.
        """
        key = tuple(device.id for device in region.devices)
        if key not in self._regions:
            sums = self._sums_ns(region)
            times = tuple(
                self._shared_ns([self._layer_ps(kind, device) for device in region.devices], sums)
                for kind in range(len(self._layers))
            )
            rooms = (max(0, device.capacity_bytes - self._stage_bytes) for device in region.devices)
            room = sum(rooms)
            self._regions[key] = times, room - room % self._layer_bytes[0] if len(self._layers) == 1 else room
        return self._regions[key]

    @cached_property
    def _regions(self) -> dict[tuple[str, ...], tuple[tuple[float, ...], int]]:
        return {}

    @cached_property
    def _layer_bytes(self) -> tuple[int, ...]:
        """Bytes of a layer of each kind on all its devices together at least: those on a single one."""
        whole = (whole_heads(layers.attention.num_kv_heads) for layers in self._base.kinds)
        return tuple(
            self._base.attention_bytes(kind, share, False) + layers.mlp.units * self._base.unit_bytes(kind)
            for kind, (layers, share) in enumerate(zip(self._base.kinds, whole, strict=True))
        )

    @cached_property
    def _stage_bytes(self) -> int:
        """Bytes that a device with layers has once at least."""
        none = KvShare(heads=0, axis="heads", parts=1, part=0)
        return min(self._base.stage_bytes(none, 1, gpu) for gpu in (False, True))

    def _sums_ns(self, inventory: Inventory) -> list[int]:
        """Return the time of the two sums of a layer over 1, 2, … members."""
        message = step.hidden_bytes(self.model, self.options)
        members = range(1, min(len(inventory.devices), MOST_MEMBERS) + 1)
        return [min(2 * all_reduce_ns(tiers, message) for tiers in best) for best in best_tiers(inventory, members)]

    def _shared_ns(self, parts: Sequence[tuple[int, ...]], sums: Sequence[int]) -> float:
        """Return the least over g of the parts, each divided over the g fastest devices, and the sums of g members."""
        rates = [sorted((1 / max(1, ps) for ps in of_part), reverse=True) for of_part in zip(*parts, strict=True)]
        totals, least = [0.0] * len(rates), float("inf")
        for members in range(len(parts)):
            totals = [total + own[members] for total, own in zip(totals, rates, strict=True)]
            divided = sum(1 / total for total in totals) / PS_PER_NS
            least = min(least, divided + sums[min(members, len(sums) - 1)])
        return least
