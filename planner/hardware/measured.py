"""Measured figures of an inventory: what the best tenth of some rounds reach, of messages the first quartile and of
sums the median, with their spread, from samples of the runtime, and as fields of a file.

Other programs make a sample worse and none better, so that the best rounds tell most of the machine, and differ least
from one measurement to the next. The spread is the interquartile range of the rounds: how busy it was.
Samples are what ``python -m runtime calibrate`` prints, times in ns of products and of all-reduces
(``runtime.calibration``); what was not sampled keeps the figure that the file or the catalogue gives.

    together    rates and overhead while 2, 4, ... and all devices of the machine compute at once
    cached      rates of weights of so many bytes in all, which stay in a cache from one step to the next
    bandwidth   bytes of the weights of a product of one row / time, by dtype
    scores      of attention, ns for every 1024, by dtype and the dims of a head
    rates       floating-point operations of a product / time, by dtype and rows (1, 4, 6, 8, 16 and 60)
    row         of a row in a layer besides its products, for every 1024 values of a hidden state
    overhead    of a layer, ``stage`` of a stage besides its layers, ``pass`` of a drafter's pass, ``table`` of
                embedding and lm_head, and ``tree`` of a step with one, by which the parts of plain and EAGLE steps of
                a small plan take what they took (``planner.api.fixed_times``)
    groups      all-reduce of a short message behind products, by the size of the group: of more processes than cores
                what products take longer with it (``runtime.calibration.machine.Sum``)
    latency     of a short message to a process that sleeps, as those of other stages do
    awake       of one to processes that still look for it, as the members of a group do
    bandwidth   of links: 2 (n - 1) / n of the bytes that a longer message has more / the time that it takes more

Predicted times take them whole, without the parts that datasheets are given (``planner.efficiency``), and between two
numbers of rows in proportion (``plans.roofs``).
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

    value: int
    spread: int
    """Third quartile of the samples less the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Rates of a device in one dtype."""

    bandwidth: Figure
    """Bytes/s."""
    products: Mapping[int, Figure]
    """Operations per second, by rows; of more than one row at least one."""
    scores: Mapping[int, Figure] | None = None
    """Ns of 1024 scores of attention, by the dims of a head; None: not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cached:
    """Rates of weights that a cache holds."""

    nbytes: int
    """Bytes of all weights of a step with which they were measured."""
    rates: Mapping[str, Rates]
    """By dtype."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Computing:
    """Figures of a device while so many devices of its machine compute at once."""

    devices: int
    rates: Mapping[str, Rates]
    """By dtype; one that is missing is as with fewer devices. None is measured beside others alone."""
    cached: Cached | None = None
    """None: ``rates`` count whatever a step reads; a dtype that these lack too is as with fewer devices."""
    overhead: Figure | None = None
    """Ns of ``Device.overhead_ns``; None: as with fewer devices."""
    drafter_pass: Figure | None = None
    """Ns of ``Device.pass_ns``; None: as with fewer devices."""
    table: Figure | None = None
    """Ns of ``Device.table_ns``; None: as with fewer devices."""
    row: Figure | None = None
    """Ns of ``MeasuredRates.row_ns``; None: as with fewer devices."""
    tree: Figure | None = None
    """Ns of ``MeasuredRates.tree_ns``; None: as with fewer devices."""
    stage: Figure | None = None
    """Ns of ``MeasuredRates.stage_ns``; None: as with fewer devices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredLink:
    """Figures of a link."""

    latency: Figure
    """Ns of a message to a process that sleeps."""
    bandwidth: Figure | None
    """Bytes/s; None where longer messages took no longer."""
    groups: Mapping[int, Figure]
    """Ns of an all-reduce of a short message, by members."""
    awake: Figure | None = None
    """Ns of a message to processes that still look for it; None: as to those that sleep."""


FIXED = ("overhead", "pass", "table", "row", "tree", "stage")
"""Fields of fixed times."""
COMPUTING = (*FIXED, *DTYPE_BYTES, "cached")
"""Fields of a device while some number of them compute."""

# ---- from samples ----


def time_of(samples_ns: Sequence[float]) -> Figure:
    """Return the time within which the best tenth of at least two samples are, with the spread of all."""
    ordered = statistics.quantiles(samples_ns, n=20, method="inclusive")
    return Figure(value=_rounded(ordered[1]), spread=_rounded(ordered[14] - ordered[4]))


def first_quartile(samples_ns: Sequence[float]) -> Figure:
    """Return the first quartile of at least two samples, with their spread.

    Of what varies by itself, as the time of waking up does, the best tenth is less than the fastest steps have.
    """
    first, _, third = statistics.quantiles(samples_ns, n=4, method="inclusive")
    return Figure(value=_rounded(first), spread=_rounded(third - first))


def middle(samples_ns: Sequence[float]) -> Figure:
    """Return the median of at least two samples, which may be differences, with their spread."""
    return replace(first_quartile(samples_ns), value=_rounded(statistics.median(samples_ns)))


def rate_of(amount: int, samples_ns: Sequence[float]) -> Figure:
    """Return the rate per second of so much work that the best tenth of the samples reach, with the spread of all."""
    ordered = statistics.quantiles([amount * NS_PER_S / ns for ns in samples_ns], n=20, method="inclusive")
    return Figure(value=_rounded(ordered[17]), spread=_rounded(ordered[14] - ordered[4]))


def _rounded(value: float) -> int:
    return int(float(f"{value:.{DIGITS}g}"))


def rates_of(samples: Mapping[str, Any]) -> tuple[Computing, ...]:
    """Return the rates by rising numbers of devices that compute at once, from what the runtime printed."""
    return tuple(
        Computing(
            devices=int(devices),
            rates=_rates_of(by_held["memory"], samples["values"]["memory"], samples["scores_ns"][devices]),
            row=time_of(samples["rows_ns"][devices]),
            cached=Cached(
                nbytes=samples["cached_bytes"], rates=_rates_of(by_held["cached"], samples["values"]["cached"], {})
            ),
        )
        for devices, by_held in sorted(samples["products_ns"].items(), key=lambda own: int(own[0]))
    )


def _rates_of(times: Mapping[str, Any], values: int, scores: Mapping[str, Any]) -> dict[str, Rates]:
    return {
        dtype: Rates(
            bandwidth=rate_of(values * DTYPE_BYTES[dtype], by_rows[1]),
            products={rows: rate_of(2 * rows * values, times_ns) for rows, times_ns in by_rows.items()},
            scores={int(dims): time_of(own) for dims, own in scores[dtype].items()} if dtype in scores else None,
        )
        for dtype, by_rows in ((dtype, _no_slower(own)) for dtype, own in times.items())
    }


def _no_slower(times: Mapping[str, Sequence[float]]) -> dict[int, Sequence[float]]:
    """Return the times of products by rising rows, none of which takes longer than one of more rows does: that it did
    is the time of other programs, or of other machines with the same memory. ``times``: by rows, as JSON has them.
    """
    by_rows: dict[int, Sequence[float]] = {}
    for rows in sorted(map(int, times), reverse=True):
        more = [] if not by_rows else [by_rows[min(by_rows)]]
        by_rows[rows] = min((times[str(rows)], *more), key=lambda own: time_of(own).value)
    return dict(sorted(by_rows.items()))


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
        groups[members] = middle(short)
        more = [after - before for before, after in zip(sorted(short), sorted(long), strict=True)]
        if min(more) > 0:
            bandwidth = rate_of(2 * (members - 1) * (long_bytes - short_bytes) // members, more)
    return MeasuredLink(latency=first_quartile(samples["message_ns"]), bandwidth=bandwidth, groups=groups)


# ---- as fields ----


def device_data(measured: Sequence[Computing]) -> dict[str, Any]:
    """Return the field ``measured`` of a device: figures of it alone, and ``together`` those beside others."""
    (alone, *others) = measured
    beside = [{"devices": own.devices} | _computing_data(own) for own in others]
    return _computing_data(alone) | ({"together": beside} if beside else {})


def _computing_data(own: Computing) -> dict[str, Any]:
    values = (own.overhead, own.drafter_pass, own.table, own.row, own.tree, own.stage)
    times = dict(zip(FIXED, values, strict=True))
    fixed = {name: _data(units.DURATION, time) for name, time in times.items() if time is not None}
    if own.cached is None:
        return fixed | _rates_data(own.rates)
    cached = {"bytes": units.render(units.SIZE, own.cached.nbytes)} | _rates_data(own.cached.rates)
    return fixed | _rates_data(own.rates) | {"cached": cached}


def _rates_data(rates: Mapping[str, Rates]) -> dict[str, Any]:
    return {
        dtype: {
            "bandwidth": _data(units.BANDWIDTH, own.bandwidth),
            "rates": [{"rows": rows} | _data(units.RATE, product) for rows, product in sorted(own.products.items())],
        }
        | ({} if own.scores is None else {"scores": _scores_data(own.scores)})
        for dtype, own in rates.items()
    }


def _scores_data(scores: Mapping[int, Figure]) -> list[dict[str, Any]]:
    return [{"head_dim": dims} | _data(units.DURATION, own) for dims, own in sorted(scores.items())]


def link_data(link: MeasuredLink) -> dict[str, Any]:
    """Return the field ``measured`` of a link."""
    latency = {"latency": _data(units.DURATION, link.latency)}
    bandwidth = {} if link.bandwidth is None else {"bandwidth": _data(units.BANDWIDTH, link.bandwidth)}
    groups = [{"members": members} | _data(units.DURATION, own) for members, own in sorted(link.groups.items())]
    awake = {} if link.awake is None else {"awake": _data(units.DURATION, link.awake)}
    return latency | awake | bandwidth | ({"groups": groups} if groups else {})


def parse_device(data: Any, path: str) -> tuple[Computing, ...]:
    """Return the field ``measured`` of a device, by rising numbers of devices; raise InventoryError for others."""
    fields = mapping(data, f"{path}.", (*COMPUTING, "together"), "a mapping of overhead, pass and dtypes")
    measured = [_computing(fields, 1, path)]
    for position, entry in enumerate(sequence(fields.get("together", []), f"{path}.together", "figures by devices")):
        where = f"{path}.together[{position}]"
        own = mapping(entry, f"{where}.", ("devices", *COMPUTING), "figures of so many devices at once")
        measured.append(_computing(own, rising(own, "devices", measured[-1].devices, where), where))
    _refuse_without_alone(measured, path)
    _refuse_other_rows(measured, path)
    return tuple(measured)


def _refuse_without_alone(measured: Sequence[Computing], path: str) -> None:
    """Raise InventoryError where a dtype is measured beside others and not alone, and so could be faster there."""
    alone, *others = measured
    for position, own in enumerate(others):
        entry = f"{path}.together[{position}]"
        for where, rates in ((entry, own.rates), (f"{entry}.cached", own.cached.rates if own.cached else {})):
            for dtype in rates:
                if dtype not in alone.rates:
                    raise InventoryError(
                        f"{where}.{dtype}: found rates with {own.devices} devices, expected those of one "
                        f"alone as well, as measured.{dtype}: add them, remove these, or measure again with "
                        "python -m planner inventory --measure"
                    )


def _refuse_other_rows(measured: Sequence[Computing], path: str) -> None:
    """Raise InventoryError where rates of a dtype are of products of other rows than those before, or scores of heads
    with other dims.
    """
    known: dict[str, list[int]] = {}
    dims: dict[str, list[int]] = {}
    for own in measured:
        for dtype, rates in (*own.rates.items(), *(own.cached.rates.items() if own.cached else ())):
            rows = sorted(rates.products)
            if rows != known.setdefault(dtype, rows):
                raise InventoryError(f"{path}: {dtype}: found rates of {rows} rows, expected {known[dtype]} everywhere")
        for dtype, rates in own.rates.items():
            of_heads = sorted(rates.scores or ())
            if of_heads != dims.setdefault(dtype, of_heads):
                expected = f"{dims[dtype]}, with any number of devices"
                raise InventoryError(f"{path}: {dtype}: found scores of heads of {of_heads} dims, expected {expected}")


def _computing(fields: Mapping[str, Any], devices: int, path: str) -> Computing:
    fixed = {name: _figure(fields[name], units.DURATION, f"{path}.{name}") for name in FIXED if name in fields}
    return Computing(
        devices=devices,
        rates=_by_dtype(fields, path),
        cached=_cached(fields["cached"], f"{path}.cached") if "cached" in fields else None,
        overhead=fixed.get("overhead"),
        drafter_pass=fixed.get("pass"),
        table=fixed.get("table"),
        row=fixed.get("row"),
        tree=fixed.get("tree"),
        stage=fixed.get("stage"),
    )


def _cached(data: Any, path: str) -> Cached:
    fields = mapping(data, f"{path}.", ("bytes", *DTYPE_BYTES), "a mapping of bytes and dtypes")
    return Cached(nbytes=figure(fields, "bytes", units.SIZE, None, path), rates=_by_dtype(fields, path))


def _by_dtype(fields: Mapping[str, Any], path: str) -> dict[str, Rates]:
    return {dtype: _rates(fields[dtype], f"{path}.{dtype}") for dtype in DTYPE_BYTES if dtype in fields}


def parse_link(data: Any, path: str) -> MeasuredLink:
    """Return the field ``measured`` of a link; raise InventoryError for anything else."""
    names = ("latency", "awake", "bandwidth", "groups")
    fields = mapping(data, f"{path}.", names, "a mapping with latency and bandwidth")
    bandwidth = _figure(fields["bandwidth"], units.BANDWIDTH, f"{path}.bandwidth") if "bandwidth" in fields else None
    latency = _figure(fields.get("latency"), units.DURATION, f"{path}.latency")
    groups = _numbered(fields.get("groups", []), units.DURATION, f"{path}.groups", "members")
    awake = _figure(fields["awake"], units.DURATION, f"{path}.awake") if "awake" in fields else None
    return MeasuredLink(latency=latency, bandwidth=bandwidth, groups=groups, awake=awake)


def _rates(data: Any, path: str) -> Rates:
    fields = mapping(data, f"{path}.", ("bandwidth", "rates", "scores"), "a mapping with bandwidth and rates")
    products = _numbered(fields.get("rates"), units.RATE, f"{path}.rates", "rows")
    if max(products, default=1) == 1:
        found = "that of 1 row alone" if products else "no rate"
        raise InventoryError(f"{path}.rates: found {found}, expected at least one of more rows: add it")
    scores = _numbered(fields["scores"], units.DURATION, f"{path}.scores", "head_dim") if "scores" in fields else None
    if scores is not None and not scores:
        raise InventoryError(f"{path}.scores: found no time, expected at least one: add it, or remove the field")
    for i, own in enumerate((scores or {}).values()):
        if own.value < 1:
            raise InventoryError(f"{path}.scores[{i}].value: found 0 ns, expected at least 1 ns: measure it again")
    bandwidth = _figure(fields.get("bandwidth"), units.BANDWIDTH, f"{path}.bandwidth")
    return Rates(bandwidth=bandwidth, products=products, scores=scores)


def _numbered(data: Any, quantity: units.Quantity, path: str, key: str) -> dict[int, Figure]:
    """Return figures by the number in their field ``key``, which rises; raise InventoryError for anything else."""
    figures: dict[int, Figure] = {}
    for position, entry in enumerate(sequence(data, path, f"a sequence of figures with {key}")):
        where = f"{path}[{position}]"
        own = mapping(entry, f"{where}.", (key, "value", "spread"), f"a figure with {key}, value and spread")
        number = rising(own, key, max(figures, default=0), where)
        figures[number] = _figure({name: own[name] for name in own if name != key}, quantity, where)
    return figures


def _figure(data: Any, quantity: units.Quantity, path: str) -> Figure:
    fields = mapping(data, f"{path}.", ("value", "spread"), "a mapping with value and spread")
    if "spread" not in fields:
        raise InventoryError(f"{path}.spread: missing, expected a quantity like {quantity.example}")
    spread = units.parse(quantity, fields["spread"], f"{path}.spread")
    if quantity is units.DURATION and "value" in fields:  # a fixed time may be too short to be told from none
        return Figure(value=units.parse(quantity, fields["value"], f"{path}.value"), spread=spread)
    return Figure(value=figure(fields, "value", quantity, None, path), spread=spread)


def _data(quantity: units.Quantity, own: Figure) -> dict[str, str]:
    return {"value": units.render(quantity, own.value), "spread": units.render(quantity, own.spread)}
