"""A lower bound of the step time on a part of a machine: without a solver, in a millisecond.

Each layer, and each pass of the drafter, takes no less than on the best number g of devices, where the g fastest share
what is divided and exchange their sums over the best links; what is whole on each member, and fixed work, take no less
than on the best device. A part holds layers on several groups at most, none of which is faster than that.

**Several hosts.** A group over hosts is on equal ones, or on devices of one look (:mod:`planner.problem.device_sets`):
inside a *region* r, which has memory C_r. With t_kr the least time of a layer of kind k there, b_k its bytes and n_k
the number of such layers, all layers take at least, for any prices p_r >= 0 of a byte,

    sum over k of n_k min over r of (t_kr + p_r b_k) - sum over r of p_r C_r

Prices are those that are best for the mean of all layers: regions are filled in order of time up to one, and a byte of
those before it costs what a layer takes more there.

**Any division.** A step on devices M takes at least F + c, where F is the sum over its divided parts l of 1 / sum over
d in M of 1 / w_dl, w_dl being the time of part l if d had all of it, and c is fixed work. By convexity 1 / F <= R, the
sum over d in M of R_d = sum over l of s_l^2 / w_dl, for any shares s_l of sum 1. So a sequence has at most E R / (1 + c
R), and b places of a replica, whose devices have the memory for one and with it a least R, have at most b E R / (1 + c
R_least): a sum over devices, rho_d each. With fewer of its places taken it has no more. With v the speed of a sequence
on all devices, N sequences in all have for any price p of a client no more than

    p N + sum over d of max over b of (1 - p / v_b) b rho_db
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.costs.fixed_work import CAPTURED
from planner.costs.roofline import all_reduce_ns
from planner.costs.rounding import LOWERED
from planner.costs.shares import BaseShares, DraftShares
from planner.integers import PS_PER_NS
from planner.problem.machine import look_of
from planner.speculation.draft_bound import MOST_MEMBERS, best_tiers, least_draft_ns
from plans import step
from plans.kv import KvShare, whole_heads
from plans.schema import Device, Draft, Inventory, Model, Options


@dataclass(frozen=True, kw_only=True)
class StepBound:
    """The bound for a model with a drafter, or without one, and these options."""

    model: Model
    draft: Draft | None
    options: Options

    def least_ns(
        self, inventory: Inventory, draft_ns: int | None = None, regions: Sequence[Inventory] | None = None
    ) -> float:
        """Return the bound on the devices of an inventory.

        ``draft_ns``: of the drafter, where it is known; ``regions``: inside one of which every group is, by default the
        inventory. Infinite where they have not the memory.
        """
        total = self._shared_ns([(self._head_ps(device),) for device in inventory.devices], [0])
        total += self._layers_ns((inventory,) if regions is None else regions)
        if self._drafter is not None:
            total += least_draft_ns(self._drafter, inventory) if draft_ns is None else draft_ns
        return total * LOWERED + self.fixed_ns(inventory)

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
            count * min(CAPTURED.layer_ns(device, layers.mlp) for device in inventory.devices)
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

    def _layers_ns(self, regions: Sequence[Inventory]) -> float:
        """Return the least time of all layers, each of which is inside a region."""
        known = [self._region(region) for region in regions]
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
            of_regions = zip(prices, known, strict=True)
            total += layers * min(times[kind] + price * own for price, (times, _) in of_regions)
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


PRICES = 64
"""Prices of a client that are tried, in equal steps up to the speed of a sequence on all devices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Bounds of expected tokens per ns with replicas of one batch, by any devices of a machine."""

    devices: tuple[float, ...]
    """rho_d of each device, for each place."""
    sequence: float
    """v: of a sequence, on all devices together."""


def most_rates(bounds: Sequence[tuple[int, StepBound]], inventory: Inventory, least_bytes: int) -> Rates:
    """Return the most over the trees of a batch, each given by expected tokens of a step (ppm) and the bound.

    ``least_bytes``: of the devices of a replica together.
    """
    devices = inventory.devices
    most, sequence = [0.0] * len(devices), 0.0
    for acceptance_ppm, bound in bounds:
        parts = {look_of(device): bound.parts_ns(device) for device in devices}
        whole = min(parts.values(), key=sum)
        shares = [part / sum(whole) for part in whole]
        by_look = {look: sum(s**2 / ns for s, ns in zip(shares, own, strict=True)) for look, own in parts.items()}
        rates = [by_look[look_of(device)] for device in devices]
        fixed = bound.fixed_ns(inventory) + bound.fixed_draft_ns(inventory)
        per_byte = min(rate / max(1, device.capacity_bytes) for rate, device in zip(rates, devices, strict=True))
        scaled = [acceptance_ppm * rate / (1 + fixed * least_bytes * per_byte) for rate in rates]
        most = [max(known, own) for known, own in zip(most, scaled, strict=True)]
        sequence = max(sequence, acceptance_ppm * sum(rates) / (1 + fixed * sum(rates)))
    return Rates(devices=tuple(most), sequence=sequence)


def any_division(batches: Mapping[int, Rates], clients: int | None) -> float:
    """Return what no division exceeds, in the unit of the rates; ``batches``: places of a replica."""
    fastest = max(rates.sequence for rates in batches.values())
    prices = [0.0] if clients is None else [fastest * step / PRICES for step in range(PRICES + 1)]
    return min(price * (clients or 0) + _above(batches, price) for price in prices)


def _above(batches: Mapping[int, Rates], price: float) -> float:
    """Return the sum over devices of the most that is left of their rate at a price of a client."""
    left = [
        [max(0.0, 1 - price / rates.sequence) * batch * rate for rate in rates.devices]
        for batch, rates in batches.items()
    ]
    return math.fsum(max(of_device) for of_device in zip(*left, strict=True))
