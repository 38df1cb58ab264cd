"""What no division of a machine exceeds: expected tokens of all its replicas together, of any devices each.

A step on devices M takes at least F + c, where F is the sum over its divided parts l of 1 / sum over d in M of 1 /
w_dl, w_dl being the time of part l if d had all of it, and c is fixed work. By convexity 1 / F <= R, the sum over d in
M of R_d = sum over l of s_l^2 / w_dl, for any shares s_l of sum 1. So a sequence has at most E R / (1 + c R), and b
places of a replica, whose devices have the memory for one and with it a least R, have at most b E R / (1 + c R_least):
a sum over devices, rho_d each. With fewer of its places taken it has no more. With v the speed of a sequence on all
devices, N sequences in all have for any price p of a client no more than

    p N + sum over d of max over b of (1 - p / v_b) b rho_db
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.problem.machine import look_of
from planner.problem.usable import part_of
from planner.speculation.step_bound import StepBound
from plans.schema import Inventory

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
    looks = list(map(look_of, inventory.devices))
    unlike = dict(zip(looks, inventory.devices, strict=True))
    few = part_of(inventory, [device.id for device in unlike.values()])  # what is fixed is the least of any device
    most, sequence = dict.fromkeys(unlike, 0.0), 0.0
    for acceptance_ppm, bound in bounds:
        parts = {look: bound.parts_ns(device) for look, device in unlike.items()}
        whole = min(parts.values(), key=sum)
        shares = [part / sum(whole) for part in whole]
        rates = {look: sum(s**2 / ns for s, ns in zip(shares, own, strict=True)) for look, own in parts.items()}
        fixed, total = bound.fixed_ns(few) + bound.fixed_draft_ns(few), math.fsum(rates[look] for look in looks)
        per_byte = min(rates[look] / max(1, device.capacity_bytes) for look, device in unlike.items())
        scale = acceptance_ppm / (1 + fixed * least_bytes * per_byte)
        most = {look: max(known, scale * rates[look]) for look, known in most.items()}
        sequence = max(sequence, acceptance_ppm * total / (1 + fixed * total))
    return Rates(devices=tuple(most[look] for look in looks), sequence=sequence)


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
