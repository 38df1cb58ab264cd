"""Measured figures of an inventory: medians with their spread, from samples of the runtime, and as fields of a file.

The spread is the interquartile range: half of the samples are within it. Samples are what ``python -m runtime
calibrate`` prints, times in ns of products and of all-reduces (``runtime.calibration``), the least of each of several
rounds; what was not sampled keeps the figure that the file or the catalogue gives.

    together    rates and overhead while 2, 4, ... and all devices of the machine compute at once
    bandwidth   bytes of the weights of a product of one row / time, by dtype
    rates       floating-point operations of a product of 1, 8 and 60 rows / time, by dtype
    overhead    of a layer, ``pass`` of a drafter's pass, and ``table`` of embedding and lm_head, by which the parts of
                plain and EAGLE steps of a small plan take what they took (``planner.api.measuring``)
    groups      all-reduce of a short message, by the size of the group
    latency     of a short message to a process that sleeps, as those of other stages do
    bandwidth   of links: 2 (n - 1) / n of the bytes that a longer message has more / the time that it takes more

Predicted times take the bandwidth and the rate of the most rows whole, without the parts that datasheets are given
(``planner.efficiency``).
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner.errors import InventoryError
from planner.hardware import units
from planner.hardware.inventory_fields import figure, mapping, rising, sequence
from plans.dtypes import DTYPE_BYTES

NS_PER_S = 10**9
DIGITS = 4
"""More would say more than a measurement does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A quantity in base units."""

    median: int
    spread: int
    """Third quartile less the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Rates of a device in one dtype."""

    bandwidth: Figure
    """Bytes/s."""
    products: Mapping[int, Figure]
    """Operations per second, by rows."""

    @property
    def flops(self) -> int:
        """Rate of the product of the most rows, which arithmetic limits."""
        return self.products[max(self.products)].median


@dataclass(frozen=True, kw_only=True, slots=True)
class Computing:
    """Figures of a device while so many devices of its machine compute at once."""

    devices: int
    rates: Mapping[str, Rates]
    """By dtype; those of one that is missing are as with fewer devices."""
    overhead: Figure | None = None
    """Ns of ``Device.overhead_ns``; None: as with fewer devices."""
    drafter_pass: Figure | None = None
    """Ns of ``Device.pass_ns``; None: as with fewer devices."""
    table: Figure | None = None
    """Ns of ``Device.table_ns``; None: as with fewer devices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredLink:
    """Figures of a link."""

    latency: Figure
    """Ns of a message to a process that sleeps."""
    bandwidth: Figure | None
    """Bytes/s; None where longer messages took no longer."""
    groups: Mapping[int, Figure]
    """Ns of an all-reduce of a short message, by members."""


FIXED = ("overhead", "pass", "table")
"""Fields of fixed times."""

# ---- from samples ----


def figure_of(samples: Sequence[float]) -> Figure:
    """Return median and spread of at least two samples, to DIGITS significant digits."""
    first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
    return Figure(median=int(float(f"{median:.{DIGITS}g}")), spread=int(float(f"{third - first:.{DIGITS}g}")))


def rates_of(samples: Mapping[str, Any]) -> dict[int, dict[str, Rates]]:
    """Return the rates by devices that compute at once and dtype, from what the runtime printed."""
    return {
        int(devices): _rates_of(by_dtype, samples["values"]) for devices, by_dtype in samples["products_ns"].items()
    }


def _rates_of(times: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Rates]:
    rates = {}
    for dtype, by_rows in times.items():
        values = {rows: sizes[rows] for rows in by_rows}
        width = DTYPE_BYTES[dtype]
        read = figure_of([values["1"] * width * NS_PER_S / ns for ns in by_rows["1"]])
        products = {
            int(rows): figure_of([2 * int(rows) * values[rows] * NS_PER_S / ns for ns in times])
            for rows, times in by_rows.items()
        }
        rates[dtype] = Rates(bandwidth=read, products=products)
    return rates


def link_of(samples: Mapping[str, Any]) -> MeasuredLink | None:
    """Return the figures of the link among the processes; None where there was one process."""
    by_members: dict[int, list[tuple[int, list[int]]]] = {}
    for entry in samples["sums"]:
        by_members.setdefault(entry["members"], []).append((entry["message_bytes"], entry["times_ns"]))
    if not by_members:
        return None
    bandwidth, groups = None, dict[int, Figure]()
    for members, sums in sorted(by_members.items()):
        (short_bytes, short), *_, (long_bytes, long) = sorted(sums)
        groups[members] = figure_of(short)
        more = [after - before for before, after in zip(sorted(short), sorted(long), strict=True)]
        if statistics.median(more) > 0 and min(more) > 0:
            ring_bytes = 2 * (members - 1) * (long_bytes - short_bytes) / members
            bandwidth = figure_of([ring_bytes * NS_PER_S / ns for ns in more])
    return MeasuredLink(latency=figure_of(samples["message_ns"]), bandwidth=bandwidth, groups=groups)


# ---- as fields ----


def device_data(measured: Sequence[Computing]) -> dict[str, Any]:
    """Return the field ``measured`` of a device: figures of it alone, and ``together`` those beside others."""
    (alone, *others) = measured
    beside = [{"devices": own.devices} | _computing_data(own) for own in others]
    return _computing_data(alone) | ({"together": beside} if beside else {})


def _computing_data(own: Computing) -> dict[str, Any]:
    times = {"overhead": own.overhead, "pass": own.drafter_pass, "table": own.table}
    return {name: _data(units.DURATION, time) for name, time in times.items() if time is not None} | {
        dtype: {
            "bandwidth": _data(units.BANDWIDTH, rates.bandwidth),
            "rates": [{"rows": rows} | _data(units.RATE, product) for rows, product in sorted(rates.products.items())],
        }
        for dtype, rates in own.rates.items()
    }


def link_data(link: MeasuredLink) -> dict[str, Any]:
    """Return the field ``measured`` of a link."""
    latency = {"latency": _data(units.DURATION, link.latency)}
    bandwidth = {} if link.bandwidth is None else {"bandwidth": _data(units.BANDWIDTH, link.bandwidth)}
    groups = [{"members": members} | _data(units.DURATION, own) for members, own in sorted(link.groups.items())]
    return latency | bandwidth | ({"groups": groups} if groups else {})


def parse_device(data: Any, path: str) -> tuple[Computing, ...]:
    """Return the field ``measured`` of a device, by rising numbers of devices; raise InventoryError for others."""
    fields = mapping(data, f"{path}.", (*FIXED, *DTYPE_BYTES, "together"), "a mapping of overhead, pass and dtypes")
    measured = [_computing(fields, 1, path)]
    for position, entry in enumerate(sequence(fields.get("together", []), f"{path}.together", "figures by devices")):
        where = f"{path}.together[{position}]"
        own = mapping(entry, f"{where}.", ("devices", *FIXED, *DTYPE_BYTES), "figures of so many devices at once")
        measured.append(_computing(own, rising(own, "devices", measured[-1].devices, where), where))
    return tuple(measured)


def _computing(fields: Mapping[str, Any], devices: int, path: str) -> Computing:
    fixed = {name: _figure(fields[name], units.DURATION, f"{path}.{name}") for name in FIXED if name in fields}
    rates = {dtype: _rates(fields[dtype], f"{path}.{dtype}") for dtype in DTYPE_BYTES if dtype in fields}
    return Computing(
        devices=devices,
        rates=rates,
        overhead=fixed.get("overhead"),
        drafter_pass=fixed.get("pass"),
        table=fixed.get("table"),
    )


def parse_link(data: Any, path: str) -> MeasuredLink:
    """Return the field ``measured`` of a link; raise InventoryError for anything else."""
    fields = mapping(data, f"{path}.", ("latency", "bandwidth", "groups"), "a mapping with latency and bandwidth")
    bandwidth = _figure(fields["bandwidth"], units.BANDWIDTH, f"{path}.bandwidth") if "bandwidth" in fields else None
    latency = _figure(fields.get("latency"), units.DURATION, f"{path}.latency")
    groups = _numbered(fields.get("groups", []), units.DURATION, f"{path}.groups", "members")
    return MeasuredLink(latency=latency, bandwidth=bandwidth, groups=groups)


def _rates(data: Any, path: str) -> Rates:
    fields = mapping(data, f"{path}.", ("bandwidth", "rates"), "a mapping with bandwidth and rates")
    products = _numbered(fields.get("rates"), units.RATE, f"{path}.rates", "rows")
    if not products:
        raise InventoryError(f"{path}.rates: no rate, expected at least one")
    return Rates(bandwidth=_figure(fields.get("bandwidth"), units.BANDWIDTH, f"{path}.bandwidth"), products=products)


def _numbered(data: Any, quantity: units.Quantity, path: str, key: str) -> dict[int, Figure]:
    """Return figures by the number in their field ``key``, which rises; raise InventoryError for anything else."""
    figures: dict[int, Figure] = {}
    for position, entry in enumerate(sequence(data, path, f"a sequence of figures with {key}")):
        where = f"{path}[{position}]"
        own = mapping(entry, f"{where}.", (key, "median", "spread"), f"a figure with {key}, median and spread")
        number = rising(own, key, max(figures, default=0), where)
        figures[number] = _figure({name: own[name] for name in own if name != key}, quantity, where)
    return figures


def _figure(data: Any, quantity: units.Quantity, path: str) -> Figure:
    fields = mapping(data, f"{path}.", ("median", "spread"), "a mapping with median and spread")
    if "spread" not in fields:
        raise InventoryError(f"{path}.spread: missing, expected a quantity like {quantity.example}")
    spread = units.parse(quantity, fields["spread"], f"{path}.spread")
    if quantity is units.DURATION and "median" in fields:  # a fixed time may be too short to be told from none
        return Figure(median=units.parse(quantity, fields["median"], f"{path}.median"), spread=spread)
    return Figure(median=figure(fields, "median", quantity, None, path), spread=spread)


def _data(quantity: units.Quantity, own: Figure) -> dict[str, str]:
    return {"median": units.render(quantity, own.median), "spread": units.render(quantity, own.spread)}
