"""The known device types and link classes of ``catalog.yaml``."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.hardware import units
from plans.schema import Link
from plans.strict_yaml import load_yaml

CPU = "cpu"
"""The type of a host CPU, whose memory and bandwidth only the inventory can give."""

_FILE = Path(__file__).with_name("catalog.yaml")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceType:
    """Defaults of one device type; None where only the inventory can give a figure."""

    name: str
    memory_bytes: int | None
    reserve_bytes: int
    bandwidth_bytes_per_s: int | None
    flops_per_s: Mapping[str, int]
    """Dense rate by dtype; a half that the device has no units for has the rate of float32."""
    overhead_ns: int
    reported_name: str
    """Words that the driver's name of the device contains."""
    names: tuple[str, ...]
    """All names that drivers give it, without the maker's; types that share a name differ in memory."""
    memory_type: str
    compute_capability: int | None
    """Compute capability of CUDA, ten times major plus minor; None where it has none."""
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """Device types and links by name."""

    devices: Mapping[str, DeviceType]
    links: Mapping[str, Link]


@functools.cache
def catalog() -> Catalog:
    """Return the catalogue that comes with the program; it is read once."""
    data = load_yaml(_FILE.read_bytes(), _FILE.name)
    return Catalog(
        devices={name: _device_type(name, row) for name, row in data["devices"].items()},
        links={name: _link(name, row) for name, row in data["links"].items()},
    )


def _device_type(name: str, row: dict[str, Any]) -> DeviceType:
    path = f"{_FILE.name}: devices.{name}"
    float32 = units.parse(units.RATE, row["float32"], path)
    rates = {dtype: units.parse(units.RATE, row[dtype], path) for dtype in ("bfloat16", "float16") if dtype in row}
    return DeviceType(
        name=name,
        memory_bytes=units.parse(units.SIZE, row["memory"], path) if "memory" in row else None,
        reserve_bytes=units.parse(units.SIZE, row["reserve"], path),
        bandwidth_bytes_per_s=units.parse(units.BANDWIDTH, row["bandwidth"], path) if "bandwidth" in row else None,
        flops_per_s={"bfloat16": float32, "float16": float32, "float32": float32} | rates,
        overhead_ns=units.parse(units.DURATION, row["overhead"], path),
        reported_name=row["reported_name"],
        names=tuple(row["names"]),
        memory_type=row["memory_type"],
        compute_capability=row.get("capability"),
        source=row["source"],
    )


def _link(name: str, row: dict[str, Any]) -> Link:
    path = f"{_FILE.name}: links.{name}"
    return Link(
        link_class=name,
        latency_ns=units.parse(units.DURATION, row["latency"], path),
        bandwidth_bytes_per_s=units.parse(units.BANDWIDTH, row["bandwidth"], path),
    )
