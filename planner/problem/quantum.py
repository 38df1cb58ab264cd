"""The units in which the solver counts time that it divides freely: finer counting only makes the proof longer."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

from planner.costs.shares import BaseShares, sequence_of
from planner.costs.work import Work
from planner.integers import PS_PER_NS
from plans.schema import Device

QUANTUM_BITS = 16
"""Bits of the MLPs' time on the devices of a group or option, counted in its quanta."""

Quantum = Callable[[Sequence[int]], int]
"""Quantum in ns of what is divided over the devices with these indices."""


class Quanta:
    """Quanta by device set. One depends on the members alone, so that devices not in use move nothing."""

    def __init__(self, shares: BaseShares, devices: Sequence[Device]) -> None:
        self._shares = shares
        self._devices = devices

    def ns(self, members: Sequence[int]) -> int:
        """Return about 1/49152 of the time of all MLPs on these devices together; 1 on one, where nothing is divided.

        A power of two; that time is 1 / Σ (1 / time on each device alone).
        """
        if len(members) == 1:
            return 1
        estimate_ns = 1 / math.fsum(self._speeds[device] for device in members)
        return 1 << max(0, math.floor(estimate_ns).bit_length() - QUANTUM_BITS)

    @cached_property
    def _speeds(self) -> list[float]:
        """Return for each device how often it would run all MLPs in a ns."""
        return [PS_PER_NS / max(1, self._mlps_ps(device)) for device in self._devices]

    def _mlps_ps(self, device: Device) -> int:
        return sum(n * unit.ps(device) for n, unit in self._units)

    @cached_property
    def _units(self) -> list[tuple[int, Work]]:
        """Return the units of all layers of each run, and the work of one."""
        runs = sequence_of(self._shares.model)
        return [(n * self._shares.kinds[k].mlp.units, self._shares.unit(k)) for k, n in runs]
