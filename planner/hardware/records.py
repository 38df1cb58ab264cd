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
from planner.hardware.measured import Figure, Rates
from plans.check_inputs import natural_key
from plans.schema import Device, DType, Host, Inventory, Link


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
    measured: Mapping[str, Rates] | None = None
    """Rates by dtype as they were measured, which count instead of the others; None: nothing was."""
    measured_overhead: Figure | None = None
    """``overhead_ns`` as it was measured; None: it was not."""

    def at(self, dtype: DType) -> Device:
        """Return the device as it computes in ``dtype``; measured rates stand as those of a datasheet would."""
        own = (self.measured or {}).get(dtype)
        bandwidth, flops = self.bandwidth_bytes_per_s, self.flops_per_s[dtype]
        if own is not None:
            bandwidth = nominal(own.bandwidth.median, BANDWIDTH_EFFICIENCY)
            flops = nominal(own.flops, FLOPS_EFFICIENCY)
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
            bandwidth_bytes_per_s=bandwidth,
            flops_per_s=flops,
            overhead_ns=self.overhead_ns,
            compute_capability=self.compute_capability,
        )


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
