"""Writes inventories as canonical YAML, every figure spelt out: parsing the text gives the same inventory again."""

from collections.abc import Sequence
from typing import Any

from planner.hardware import units
from planner.hardware.catalog import catalog
from planner.hardware.measured import device_data
from planner.hardware.records import HardwareInventory, ListedDevice
from plans.schema import Device, GroupSum, Host, Inventory, Link, Together
from plans.strict_yaml import dump_yaml


def dump_inventory(inventory: Inventory | HardwareInventory) -> str:
    """Return the text of an inventory.

    A rate that depends on the dtype is left to the catalogue, which alone has such rates.
    """
    hosts = [_host(host, inventory.devices) for host in inventory.hosts]
    network = {} if inventory.network is None else {"network": _link(inventory.network)}
    return dump_yaml({"hosts": hosts} | network)


def _host(host: Host, devices: Sequence[Device | ListedDevice]) -> dict[str, Any]:
    links = _link(host.link) | ({} if host.transport == "auto" else {"transport": host.transport})
    pairs = [{"between": [pair.a, pair.b]} | _link(pair.link) for pair in host.pairs]
    return {
        "name": host.name,
        "links": links | ({"pairs": pairs} if pairs else {}),
        "devices": [_device(device) for device in devices if device.host == host.name],
    }


def _link(link: Link) -> dict[str, Any]:
    return {
        "class": link.link_class,
        "latency": units.render(units.DURATION, link.latency_ns),
        "bandwidth": units.render(units.BANDWIDTH, link.bandwidth_bytes_per_s),
        **({} if link.sums is None else {"sums": [_sum(own) for own in link.sums]}),
        **({} if link.awake_ns is None else {"awake": units.render(units.DURATION, link.awake_ns)}),
    }


def _sum(own: GroupSum) -> dict[str, Any]:
    return {"members": own.members, "time": units.render(units.DURATION, own.ns)}


def _device(device: Device | ListedDevice) -> dict[str, Any]:
    flops = _uniform_rate(device)
    entry: dict[str, Any] = {
        "id": device.id,
        "type": device.type,
        "memory": units.render(units.SIZE, device.memory_bytes),
        "reserve": units.render(units.SIZE, device.reserve_bytes),
        "bandwidth": units.render(units.BANDWIDTH, device.bandwidth_bytes_per_s),
        **({} if flops is None else {"flops": units.render(units.RATE, flops)}),
        "overhead": units.render(units.DURATION, device.overhead_ns),
        **_fixed(device),
        **({} if not device.together else {"together": [_together(own) for own in device.together]}),
        "reported_name": device.reported_name,
    }
    if isinstance(device, ListedDevice) and device.measured:
        entry["measured"] = device_data(device.measured)
    if device.kind == "cpu":
        return entry
    return entry | {"ordinal": device.ordinal} | ({} if device.uuid is None else {"uuid": device.uuid})


def _together(own: Together) -> dict[str, Any]:
    return {
        "devices": own.devices,
        "bandwidth": units.render(units.BANDWIDTH, own.bandwidth_bytes_per_s),
        "flops": units.render(units.RATE, own.flops_per_s),
        "overhead": units.render(units.DURATION, own.overhead_ns),
        **_fixed(own),
    }


def _fixed(own: Device | ListedDevice | Together) -> dict[str, Any]:
    times = {"pass": own.pass_ns, "table": own.table_ns}
    return {name: units.render(units.DURATION, ns) for name, ns in times.items() if ns is not None}


def _uniform_rate(device: Device | ListedDevice) -> int | None:
    """Return the rate of a device, None where it differs by dtype as in the catalogue."""
    if isinstance(device, Device):
        return device.flops_per_s
    rates = set(device.flops_per_s.values())
    if len(rates) == 1:
        return rates.pop()
    assert device.flops_per_s == catalog().devices[device.type].flops_per_s, "a file gives one rate for all dtypes"
    return None
