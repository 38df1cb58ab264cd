"""Rates of a device while more of them compute at once, as an inventory file gives them: none better than with fewer.

Bounds of times take the rates of a device alone for the best that it has, so that a better one is refused.
"""

from collections.abc import Mapping
from typing import Any

from planner.errors import InventoryError
from planner.hardware import units
from planner.hardware.inventory_fields import figure, mapping, rising, sequence
from plans.cpu_times import fixed_times
from plans.schema import Together


def fixed_time(fields: Mapping[str, Any], name: str, path: str) -> int | None:
    """Return a fixed time in ns, None where it is not given."""
    return figure(fields, name, units.DURATION, None, path) if name in fields else None


def rates_together(data: Any, path: str, alone: Together) -> tuple[Together, ...]:
    """Return the rates by rising numbers of devices; raise InventoryError for others. ``alone``: those of the device,
    of several dtypes the lowest rate.
    """
    rates = [alone]
    for position, entry in enumerate(sequence(data, path, "a sequence of rates by devices")):
        where = f"{path}[{position}]"
        names = ("devices", "bandwidth", "flops", "overhead", "pass", "table")
        fields = mapping(entry, f"{where}.", names, "rates with devices, bandwidth, flops and overhead")
        own = Together(
            devices=rising(fields, "devices", rates[-1].devices, where),
            bandwidth_bytes_per_s=figure(fields, "bandwidth", units.BANDWIDTH, None, where),
            flops_per_s=figure(fields, "flops", units.RATE, None, where),
            overhead_ns=figure(fields, "overhead", units.DURATION, None, where),
            pass_ns=fixed_time(fields, "pass", where),
            table_ns=fixed_time(fields, "table", where),
        )
        _refuse_faster(own, rates[-1], where)
        rates.append(own)
    return tuple(rates[1:])


def _refuse_faster(own: Together, fewer: Together, path: str) -> None:
    for name, quantity, rate, most in (
        ("bandwidth", units.BANDWIDTH, own.bandwidth_bytes_per_s, fewer.bandwidth_bytes_per_s),
        ("flops", units.RATE, own.flops_per_s, fewer.flops_per_s),
    ):
        if rate > most:
            raise InventoryError(
                f"{path}.{name}: found {units.render(quantity, rate)}, expected at most "
                f"{units.render(quantity, most)}, the rate with fewer devices"
            )
    for (name, given_ns, ns), (_, _, least_ns) in zip(fixed_times(own), fixed_times(fewer), strict=True):
        if ns < least_ns:
            known = "found" if given_ns is not None else "missing, which means"
            raise InventoryError(
                f"{path}.{name}: {known} {units.render(units.DURATION, ns)}, expected at least "
                f"{units.render(units.DURATION, least_ns)}, the time with fewer devices"
            )
