"""Records of the hardware as an inventory lists it: every figure known, the rate of a device still open in the dtype.

A dtype picks the rate (:meth:`HardwareInventory.at`), and the result is the inventory that a plan records
(:class:`plans.schema.Inventory`). A file is parsed into these records once; whoever asks about other hardware, as
:mod:`planner.remedies` does, changes the records.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from planner.efficiency import BANDWIDTH_EFFICIENCY, FLOPS_EFFICIENCY, nominal
from planner.hardware.measured import Computing
from plans.check_inputs import natural_key
from plans.cpu_times import pass_ns, table_ns
from plans.schema import Device, DType, Host, Inventory, Link, Together


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

    def at(self, dtype: DType) -> Device:
        """Return the device as it computes in ``dtype``; measured rates stand as those of a datasheet would."""
        alone, *together = self._computing(dtype)
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
            together=tuple(together) or None,
        )

    def _computing(self, dtype: DType) -> list[Together]:
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
            rates.append(_measured(own, rates[-1], dtype))
        return _no_faster(rates[1:])


def _measured(own: Computing, otherwise: Together, dtype: DType) -> Together:
    """Return measured rates as those of a datasheet would stand; ``otherwise``: where nothing was measured."""
    rates = own.rates.get(dtype)
    bandwidth, flops = otherwise.bandwidth_bytes_per_s, otherwise.flops_per_s
    if rates is not None:
        bandwidth = nominal(rates.bandwidth.median, BANDWIDTH_EFFICIENCY)
        flops = nominal(rates.flops, FLOPS_EFFICIENCY)
    return Together(
        devices=own.devices,
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s=flops,
        overhead_ns=otherwise.overhead_ns if own.overhead is None else own.overhead.median,
        pass_ns=otherwise.pass_ns if own.drafter_pass is None else own.drafter_pass.median,
        table_ns=otherwise.table_ns if own.table is None else own.table.median,
    )


def _no_faster(rates: list[Together]) -> list[Together]:
    """Return measured rates none of which is better than the one before: what seems so is noise."""
    kept = rates[:1]
    for own in rates[1:]:
        before = kept[-1]
        kept.append(
            Together(
                devices=own.devices,
                bandwidth_bytes_per_s=min(before.bandwidth_bytes_per_s, own.bandwidth_bytes_per_s),
                flops_per_s=min(before.flops_per_s, own.flops_per_s),
                overhead_ns=max(before.overhead_ns, own.overhead_ns),
                pass_ns=None if own.pass_ns is None else max(pass_ns(before), own.pass_ns),
                table_ns=None if own.table_ns is None else max(table_ns(before), own.table_ns),
            )
        )
    return kept


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwareInventory:
    """Hosts sorted by name, their links, and devices sorted by host and natural id."""

    hosts: tuple[Host, ...]
    network: Link | None
    """Link between any two hosts; None with a single host."""
    devices: tuple[ListedDevice, ...]

    def at(self, dtype: DType) -> Inventory:
        """Return the inventory of a plan in ``dtype``."""
        return Inventory(
            hosts=self.hosts, network=self.network, devices=tuple(device.at(dtype) for device in self.devices)
        )

    def with_device(self, device: ListedDevice) -> "HardwareInventory":
        """Return the inventory with one more device on one of its hosts; its id must be new."""
        assert device.host in {host.name for host in self.hosts}, device
        assert device.id not in {other.id for other in self.devices}, device
        return dataclasses.replace(self, devices=in_order((*self.devices, device)))


def in_order(devices: Iterable[ListedDevice]) -> tuple[ListedDevice, ...]:
    """Return devices sorted by host and id, where numbers in ids count as numbers."""
    return tuple(sorted(devices, key=lambda device: (device.host, natural_key(device.id))))
