"""Records of the hardware as an inventory lists it: every figure known, the rate of a device still open in the dtype.

A dtype picks the rate (:meth:`HardwareInventory.at`), and the result is the inventory that a plan records
(:class:`plans.schema.Inventory`). A file is parsed into these records once; whoever asks about other hardware, as
:mod:`planner.remedies` does, changes the records.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from planner.efficiency import BANDWIDTH_EFFICIENCY, FLOPS_EFFICIENCY, nominal
from planner.hardware.measured import Computing, Figure, Rates
from plans.check_inputs import natural_key
from plans.cpu_times import pass_ns, stage_ns, table_ns
from plans.dtypes import DTYPE_BYTES
from plans.roofs import is_below, roof_of
from plans.schema import Device, DType, Host, Inventory, Link, MeasuredRates, ProductRates, ScoreTime, Together


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedDevice:
    """A GPU or a host CPU: the fields of :class:`plans.schema.Device`, with a rate for each dtype."""

    id: str
    host: str
    type: str
    kind: Literal["cuda", "cpu"]
    ordinal: int
    uuid: str | None
    reported_name: str
    memory_bytes: int
    reserve_bytes: int
    bandwidth_bytes_per_s: int
    flops_per_s: Mapping[str, int]
    """Dense rate by dtype, in floating-point operations per second."""
    overhead_ns: int
    compute_capability: int | None
    pass_ns: int | None = None
    table_ns: int | None = None
    together: tuple[Together, ...] = ()
    """Rates while more devices compute at once, as the file gives them, in every dtype; none where figures were
    measured."""
    measured: tuple[Computing, ...] = ()
    """Figures as they were measured, which count instead of the others: of the device alone, then of more that compute
    at once, by their numbers."""

    def at(self, dtype: DType, weights_bytes: int | None = None) -> Device:
        """Return the device as it computes in ``dtype``; measured rates stand as those of a datasheet would.

        ``weights_bytes``: of a step, which a cache may hold; None: it does not.
        """
        alone, *together = self._computing(dtype, weights_bytes)
        return Device(
            id=self.id,
            host=self.host,
            type=self.type,
            kind=self.kind,
            ordinal=self.ordinal,
            uuid=self.uuid,
            reported_name=self.reported_name,
            memory_bytes=self.memory_bytes,
            reserve_bytes=self.reserve_bytes,
            bandwidth_bytes_per_s=alone.bandwidth_bytes_per_s,
            flops_per_s=alone.flops_per_s,
            overhead_ns=alone.overhead_ns,
            compute_capability=self.compute_capability,
            pass_ns=alone.pass_ns,
            table_ns=alone.table_ns,
            measured=alone.measured,
            together=tuple(together) or None,
        )

    def _computing(self, dtype: DType, weights_bytes: int | None) -> list[Together]:
        """Return the rates alone, then those with more devices, none of them faster."""
        listed = Together(
            devices=1,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
            flops_per_s=self.flops_per_s[dtype],
            overhead_ns=self.overhead_ns,
            pass_ns=self.pass_ns,
            table_ns=self.table_ns,
        )
        if not self.measured:
            return [listed, *self.together]
        rates = [listed]
        for own in self.measured:
            rates.append(_measured(own, rates[-1], dtype, weights_bytes))
        return [_with_convex_products(own) for own in _no_faster(rates[1:])]


def _measured(own: Computing, otherwise: Together, dtype: DType, weights_bytes: int | None) -> Together:
    """Return measured rates as those of a datasheet would stand; ``otherwise``: where nothing was measured."""
    rates = own.rates.get(dtype)
    if own.cached is not None and weights_bytes is not None and weights_bytes <= own.cached.nbytes:
        rates = own.cached.rates.get(dtype, rates)
    more = otherwise.measured
    bandwidth, flops = otherwise.bandwidth_bytes_per_s, otherwise.flops_per_s
    if rates is not None:
        products = _products(rates, DTYPE_BYTES[dtype])
        bandwidth, flops = products[0].bandwidth_bytes_per_s, products[-1].flops_per_s
        more = MeasuredRates(
            products=products,
            row_ns=more.row_ns if more else 0,
            tree_ns=more.tree_ns if more else 0,
            stage_ns=more.stage_ns if more else None,
            scores=more.scores if more else None,
        )
    if more is not None:
        more = replace(
            more,
            row_ns=more.row_ns if own.row is None else own.row.value,
            tree_ns=more.tree_ns if own.tree is None else own.tree.value,
            stage_ns=more.stage_ns if own.stage is None else own.stage.value,
            scores=_scores(own.rates[dtype].scores) if dtype in own.rates else more.scores,
        )
    return Together(
        devices=own.devices,
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s=flops,
        measured=more,
        overhead_ns=otherwise.overhead_ns if own.overhead is None else own.overhead.value,
        pass_ns=otherwise.pass_ns if own.drafter_pass is None else own.drafter_pass.value,
        table_ns=otherwise.table_ns if own.table is None else own.table.value,
    )


def _products(rates: Rates, width: int) -> tuple[ProductRates, ...]:
    """Return the rates of products by rising rows, of which more take no less time, and no more for a row.

    What seems otherwise is noise. One row is as fast as the weights are read. ``width``: bytes of a weight.
    """
    read = nominal(rates.bandwidth.value, BANDWIDTH_EFFICIENCY)
    flops = nominal(2 * rates.bandwidth.value // width, FLOPS_EFFICIENCY)
    products = [ProductRates(bandwidth_bytes_per_s=read, flops_per_s=flops)]
    for rows, figure in sorted(rates.products.items()):
        if rows > 1:
            flops = max(nominal(figure.value, FLOPS_EFFICIENCY), flops)
            measured = flops * FLOPS_EFFICIENCY[0] // FLOPS_EFFICIENCY[1]
            read = min(nominal(measured * width // (2 * rows), BANDWIDTH_EFFICIENCY), read)
            products.append(ProductRates(bandwidth_bytes_per_s=max(1, read), flops_per_s=flops))
    return tuple(products)


def _scores(scores: Mapping[int, Figure] | None) -> tuple[ScoreTime, ...] | None:
    """Return times of attention by rising dims of a head, of which more take no longer than in proportion: heads that
    are divided take no less in all than they took whole.
    """
    times: list[ScoreTime] = []
    for dims, figure in sorted((scores or {}).items()):
        most = figure.value if not times else times[-1].ns * dims // times[-1].head_dim
        times.append(ScoreTime(head_dim=dims, ns=min(figure.value, most)))
    return tuple(times) or None


def _with_convex_products(own: Together) -> Together:
    """Return rates without those of products that take longer than their neighbours' time in proportion, which
    ``plans.roofs`` has no use for.
    """
    if own.measured is None:
        return own
    kept: list[ProductRates] = []
    for product in own.measured.products:
        while kept and _is_useless(kept, product):
            kept.pop()
        kept.append(product)
    if len(kept) < 2:
        return replace(own, measured=None)
    ends = {"bandwidth_bytes_per_s": kept[0].bandwidth_bytes_per_s, "flops_per_s": kept[-1].flops_per_s}
    return replace(own, measured=replace(own.measured, products=tuple(kept)), **ends)


def _is_useless(kept: list[ProductRates], more: ProductRates) -> bool:
    """Return whether the last product takes no less than those before and behind it have its time in proportion."""
    if roof_of(kept[-1], more)[2] <= 0:
        return True
    return len(kept) > 1 and is_below([roof_of(kept[-2], more)], kept[-1])


def _no_faster(rates: list[Together]) -> list[Together]:
    """Return measured rates none of which is better than the one before.

    What seems so is noise. Rates are samples, which other programs make worse and none better: fewer devices have those
    of more, where they were measured with worse ones. Fixed times are what steps take beyond them: more devices have
    those of fewer.
    """
    fast = rates[-1:]
    for own in reversed(rates[:-1]):
        fast.insert(0, _no_slower(own, fast[0]))
    kept = fast[:1]
    for own in fast[1:]:
        before, measured = kept[-1], own.measured
        if measured is not None and before.measured is not None:
            measured = replace(
                measured,
                tree_ns=max(measured.tree_ns, before.measured.tree_ns),
                stage_ns=None if measured.stage_ns is None else max(stage_ns(before), measured.stage_ns),
            )
        kept.append(
            replace(
                own,
                overhead_ns=max(before.overhead_ns, own.overhead_ns),
                pass_ns=None if own.pass_ns is None else max(pass_ns(before), own.pass_ns),
                table_ns=None if own.table_ns is None else max(table_ns(before), own.table_ns),
                measured=measured,
            )
        )
    return kept


def _no_slower(own: Together, more: Together) -> Together:
    """Return rates each of which is at least that with more devices."""
    measured = own.measured
    if measured is not None and more.measured is not None:
        same_rows = zip(measured.products, more.measured.products, strict=True)
        measured = replace(
            measured,
            products=tuple(_faster(*pair) for pair in same_rows),
            row_ns=min(measured.row_ns, more.measured.row_ns),
            scores=_no_longer(measured.scores, more.measured.scores),
        )
    return replace(
        own,
        bandwidth_bytes_per_s=max(own.bandwidth_bytes_per_s, more.bandwidth_bytes_per_s),
        flops_per_s=max(own.flops_per_s, more.flops_per_s),
        measured=measured,
    )


def _no_longer(
    scores: tuple[ScoreTime, ...] | None, most: tuple[ScoreTime, ...] | None
) -> tuple[ScoreTime, ...] | None:
    """Return times of attention, none above that with the same dims in ``most``."""
    if scores is None or most is None:
        return scores
    return tuple(replace(own, ns=min(own.ns, other.ns)) for own, other in zip(scores, most, strict=True))


def _faster(one: ProductRates, other: ProductRates) -> ProductRates:
    return ProductRates(
        bandwidth_bytes_per_s=max(one.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s),
        flops_per_s=max(one.flops_per_s, other.flops_per_s),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwareInventory:
    """Hosts sorted by name, their links, and devices sorted by host and natural id."""

    hosts: tuple[Host, ...]
    network: Link | None
    """Link between any two hosts; None with a single host."""
    devices: tuple[ListedDevice, ...]

    def at(self, dtype: DType, weights_bytes: int | None = None) -> Inventory:
        """Return the inventory of a plan in ``dtype``, of which a step reads so many bytes of weights."""
        devices = tuple(device.at(dtype, weights_bytes) for device in self.devices)
        return Inventory(hosts=self.hosts, network=self.network, devices=devices)

    def with_device(self, device: ListedDevice) -> "HardwareInventory":
        """Return the inventory with one more device on one of its hosts; its id must be new."""
        assert device.host in {host.name for host in self.hosts}, device
        assert device.id not in {other.id for other in self.devices}, device
        return dataclasses.replace(self, devices=in_order((*self.devices, device)))


def in_order(devices: Iterable[ListedDevice]) -> tuple[ListedDevice, ...]:
    """Return devices sorted by host and id, where numbers in ids count as numbers."""
    return tuple(sorted(devices, key=lambda device: (device.host, natural_key(device.id))))
