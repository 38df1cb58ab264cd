"""Reads ``inventory.yaml``: hosts, devices and links, with the defaults of the catalogue filled in.

The order of a list never matters: hosts are sorted by name, devices by host and natural id. Every refusal is an
InventoryError that starts with the file and the path to the datum. :mod:`planner.hardware.inventory_text` writes it.
"""

import dataclasses
import difflib
import errno
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from planner.errors import InventoryError
from planner.hardware import units
from planner.hardware.catalog import CPU, DeviceType, catalog
from planner.hardware.inventory_fields import CLASS, CLASS_LETTERS, figure, mapping, sequence, text
from planner.hardware.inventory_links import host_with_links, network_link
from planner.hardware.inventory_together import fixed_time, rates_together
from planner.hardware.measured import parse_device
from planner.hardware.records import HardwareInventory, ListedDevice, in_order
from plans.artifact import DEVICE_UUID
from plans.check_inputs import MOST_DEVICES, natural_key, uuid_conflicts
from plans.codec import read_document
from plans.dtypes import DTYPE_BYTES
from plans.format import quote
from plans.schema import Host, PlanError, Together
from plans.strict_yaml import load_yaml

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names that a host may have."""
_DEVICE_FIELDS = (
    *("id", "type", "memory", "reserve", "bandwidth", "flops", "overhead"),
    *("ordinal", "uuid", "reported_name", "pass", "table", "together", "measured"),
)


def load_inventory(path: Path) -> HardwareInventory:
    """Read an inventory file; raise InventoryError for anything that is not one."""
    return parse_inventory(read_inventory(path), str(path))


def read_inventory(path: Path) -> Any:
    """Return an inventory file as plain data, for :func:`parse_inventory`."""
    try:
        return load_yaml(read_document(path, inside=False), str(path))
    except PlanError as error:
        raise InventoryError(str(error)) from error
    except OSError as error:
        reasons = {errno.EISDIR: "a directory", errno.ENOENT: "no such file"}
        reason = reasons.get(error.errno or 0, error.strerror)
        detect = f", or write this machine's with `python -m planner inventory --detect {path}`"
        advice = f"give an inventory of hosts and devices{detect if error.errno == errno.ENOENT else ''}"
        raise InventoryError(f"{path}: {reason}: {advice}") from error


def parse_inventory(data: Any, where: str) -> HardwareInventory:
    """Return the inventory of plain data; ``where`` names the file in messages."""
    fields = mapping(data, f"{where}: ", ("hosts", "network"), "a mapping with hosts and network")
    entries = sequence(fields.get("hosts"), f"{where}: hosts", "a sequence of hosts")
    hosts: list[Host] = []
    devices: list[ListedDevice] = []
    for position, entry in enumerate(entries):
        host, own = _host(entry, f"{where}: hosts[{position}]")
        if any(host.name == other.name for other in hosts):
            raise InventoryError(f"{where}: hosts[{position}].name: {host.name!r} is already the name of another host")
        _refuse_known_ids(own, devices, f"{where}: hosts[{position}].devices")
        hosts.append(host)
        devices.extend(own)
    if len(devices) > MOST_DEVICES:
        raise InventoryError(f"{where}: hosts: {len(devices)} devices, expected at most {MOST_DEVICES}")
    if not hosts:
        raise InventoryError(f"{where}: hosts: no host, expected at least one with at least one device")
    return HardwareInventory(
        hosts=tuple(sorted(hosts, key=lambda host: host.name)),
        network=network_link(fields.get("network"), f"{where}: network", len(hosts)),
        devices=in_order(devices),
    )


# Devices


def _host(data: Any, path: str) -> tuple[Host, list[ListedDevice]]:
    fields = mapping(data, f"{path}.", ("name", "links", "devices"), "a host with name, links and devices")
    name = text(fields, "name", path, HOST_NAME, "letters, digits, '.', '_' and '-'")
    entries = sequence(fields.get("devices"), f"{path}.devices", "a sequence of devices")
    if not entries:
        raise InventoryError(f"{path}.devices: no device, expected at least one")
    devices: list[ListedDevice] = []
    for position, entry in enumerate(entries):
        device = _device(entry, name, f"{path}.devices[{position}]")
        _refuse_known_ids([device], devices, f"{path}.devices", position)
        devices.append(device)
    devices = _number_accelerators(devices, entries)
    _refuse_shared_ordinals(devices, entries, f"{path}.devices")
    for position, other in uuid_conflicts(devices).items():
        raise InventoryError(f"{path}.devices[{position}].uuid: found {devices[position].uuid}, which {other} has too")
    return host_with_links(fields.get("links"), f"{path}.links", name, devices), devices


def _refuse_known_ids(new: Iterable[ListedDevice], known: list[ListedDevice], path: str, start: int = 0) -> None:
    hosts = {device.id: device.host for device in known}
    for position, device in enumerate(new, start):
        if device.id in hosts:
            raise InventoryError(
                f"{path}[{position}].id: {device.id!r} is already the id of a device of host {hosts[device.id]}, "
                "expected an id that is unique in the whole inventory"
            )


def _number_accelerators(devices: list[ListedDevice], entries: list[Any]) -> list[ListedDevice]:
    """Give devices without an ordinal their position among the accelerators of the host, in the order of ids."""
    order = sorted((device for device in devices if device.kind == "cuda"), key=lambda device: natural_key(device.id))
    position = {device.id: number for number, device in enumerate(order)}
    return [
        device
        if "ordinal" in entry or device.kind == "cpu"
        else dataclasses.replace(device, ordinal=position[device.id])
        for device, entry in zip(devices, entries, strict=True)
    ]


def _refuse_shared_ordinals(devices: list[ListedDevice], entries: list[Any], path: str) -> None:
    """Raise InventoryError for two whole accelerators of one ordinal.

    Parts of an accelerator (MIG slices, or shares of its memory) have its ordinal, each with the memory that it may
    use; of a listed type all parts together have no more than the accelerator.
    """
    parts: dict[int, list[int]] = {}
    for position, device in enumerate(devices):
        if device.kind == "cuda":
            parts.setdefault(device.ordinal, []).append(position)
    for ordinal, positions in parts.items():
        if len(positions) < 2:
            continue
        first, *others = [devices[position].id for position in positions]
        last = f"{path}[{positions[-1]}].ordinal: found {ordinal}, which {first} has too"
        if not all({"ordinal", "memory"} <= set(entries[position]) for position in positions):
            raise InventoryError(
                f"{last}: expected another one, or, where {', '.join([first, *others])} are parts of one accelerator, "
                "an ordinal and a memory of its own for each"
            )
        listed = {devices[position].type for position in positions} & set(catalog().devices)
        if len(listed) > 1:
            raise InventoryError(f"{last}: {' and '.join(sorted(listed))} are not parts of one accelerator")
        whole = min((catalog().devices[name].memory_bytes or 0 for name in listed), default=0)
        together = sum(devices[position].memory_bytes for position in positions)
        if whole and together > whole:
            raise InventoryError(
                f"{last}: the parts have {together} bytes of memory together, expected at most {whole}, those of a "
                f"{min(listed)}"
            )


def _device(data: Any, host: str, path: str) -> ListedDevice:
    fields = mapping(data, f"{path}.", _DEVICE_FIELDS, "a device with id and type")
    device_id = text(fields, "id", path, _ID, "lower-case letters, digits, '_' and '-'")
    type_name = text(fields, "type", path, CLASS, CLASS_LETTERS, _nearest_types)
    if type_name not in catalog().devices:
        _require_figures(fields, type_name, path)
    default = catalog().devices.get(type_name, _OTHER)
    memory = figure(fields, "memory", units.SIZE, default.memory_bytes, path)
    reserve = figure(fields, "reserve", units.SIZE, default.reserve_bytes, path)
    if reserve >= memory:
        _refuse_reserve(fields, reserve, memory, path)
    if "together" in fields and "measured" in fields:
        raise InventoryError(
            f"{path}.together: found beside measured, whose figures count instead: give measured.together, or neither"
        )
    measured = parse_device(fields["measured"], f"{path}.measured") if "measured" in fields else ()
    flops_per_s = _rates(fields, default, path)
    alone = Together(
        devices=1,
        bandwidth_bytes_per_s=figure(fields, "bandwidth", units.BANDWIDTH, default.bandwidth_bytes_per_s, path),
        flops_per_s=min(flops_per_s.values()),
        overhead_ns=figure(fields, "overhead", units.DURATION, default.overhead_ns, path),
        pass_ns=fixed_time(fields, "pass", path),
        table_ns=fixed_time(fields, "table", path),
    )
    return ListedDevice(
        id=device_id,
        host=host,
        type=type_name,
        kind="cpu" if type_name == CPU else "cuda",
        ordinal=_ordinal(fields, type_name, path),
        uuid=_uuid(fields, type_name, path),
        reported_name=_reported_name(fields, default, path),
        memory_bytes=memory,
        reserve_bytes=reserve,
        bandwidth_bytes_per_s=alone.bandwidth_bytes_per_s,
        flops_per_s=flops_per_s,
        overhead_ns=alone.overhead_ns,
        compute_capability=default.compute_capability,
        pass_ns=alone.pass_ns,
        table_ns=alone.table_ns,
        together=rates_together(fields.get("together", []), f"{path}.together", alone),
        measured=measured,
    )


def _rates(fields: Mapping[str, Any], default: DeviceType, path: str) -> Mapping[str, int]:
    """Return the rate by dtype: one rate that the file gives holds for all, else the catalogue's."""
    if "flops" not in fields:
        return default.flops_per_s
    return dict.fromkeys(DTYPE_BYTES, figure(fields, "flops", units.RATE, None, path))


_OTHER = DeviceType(
    name="",
    memory_bytes=None,
    reserve_bytes=1 << 30,
    bandwidth_bytes_per_s=None,
    flops_per_s={},
    overhead_ns=36_000,
    reported_name="",
    names=(),
    memory_type="",
    compute_capability=None,
    source="the largest reserve and the overhead of the GPUs in the catalogue",
)
"""Defaults of a type that the catalogue does not list."""


def _refuse_reserve(fields: Mapping[str, Any], reserve: int, memory: int, path: str) -> None:
    """Raise InventoryError for a reserve as large as the memory, about whichever of the two the file gives.

    A memory without a unit is in bytes, which is the usual mistake.
    """
    if "reserve" in fields or "memory" not in fields:
        raise InventoryError(f"{path}.reserve: found {reserve} bytes, expected less than memory, {memory} bytes")
    remedy = f"give it with a unit, like {units.SIZE.example}" if type(fields["memory"]) is int else "give a reserve"
    raise InventoryError(
        f"{path}.memory: found {memory} bytes, expected more than the reserve, {reserve} bytes: {remedy}"
    )


def _require_figures(fields: Mapping[str, Any], type_name: str, path: str) -> None:
    missing = [name for name in ("memory", "bandwidth", "flops") if name not in fields]
    if missing:
        raise InventoryError(
            f"{path}.type: {type_name!r} is not in the catalogue{_nearest_types(type_name)}; "
            f"a device of another type gives memory, bandwidth and flops itself; missing: {', '.join(missing)}"
        )


def _nearest_types(name: Any) -> str:
    """Name up to three known types: those that begin with the name (h100), contain it (4090), or are spelt alike."""
    text = re.sub(r"[ _]+", "-", name.lower()) if type(name) is str else str(name) if type(name) is int else ""
    begun = [known for known in catalog().devices if text and known.startswith(text)]
    within = [known for known in catalog().devices if len(text) > 2 and text in known]
    alike = difflib.get_close_matches(text, catalog().devices, n=3, cutoff=0.5 if type(name) is str else 0.7)
    nearest = list(dict.fromkeys([*begun, *within, *alike]))[:3]
    return f"; the nearest known types are {', '.join(nearest)}" if nearest else ""


def _ordinal(fields: Mapping[str, Any], type_name: str, path: str) -> int:
    value = fields.get("ordinal", 0)
    if type(value) is not int or not 0 <= value < 1024:
        raise InventoryError(f"{path}.ordinal: found {quote(value)}, expected the index of an accelerator, 0 to 1023")
    if type_name == CPU and value != 0:
        raise InventoryError(f"{path}.ordinal: found {value}, expected 0: a cpu is not numbered")
    return value


def _uuid(fields: Mapping[str, Any], type_name: str, path: str) -> str | None:
    value = fields.get("uuid")
    if value is None:
        return None
    if type(value) is not str or not DEVICE_UUID.fullmatch(value):
        raise InventoryError(
            f"{path}.uuid: found {quote(value)}, expected a UUID of the driver, like GPU-... or MIG-..."
        )
    if type_name == CPU:
        raise InventoryError(f"{path}.uuid: found {value}, expected none: a cpu has no UUID")
    return value


def _reported_name(fields: Mapping[str, Any], default: DeviceType, path: str) -> str:
    value = fields.get("reported_name", default.reported_name)
    if type(value) is not str or not value.isprintable() or len(value) > 64:
        raise InventoryError(f"{path}.reported_name: found {quote(value)}, expected a part of the driver's device name")
    return value
