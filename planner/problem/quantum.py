"""The unit in which the solver counts time that it divides freely: finer counting only makes the proof longer."""

import math
from collections.abc import Sequence
from fractions import Fraction

from planner.costs.shares import BaseShares, sequence_of
from planner.integers import PS_PER_NS
from plans.kv import whole_heads
from plans.schema import Device

QUANTUM_BITS = 14
"""Bits of the estimated MLP time, counted in quanta."""


def quantum_ns(shares: BaseShares, devices: Sequence[Device]) -> int:
    """Return about 1/8192 of the MLPs' time with all devices at work, each as far as it has room for layers.

    A power of two, so that it does not depend on the order of devices. Where a slow device has the layers that the
    others have no room for, most of the time is its own; counting finer would lengthen the proof, not improve the plan.
    """
    estimate = shared_ps([_room_and_ps(shares, device) for device in devices]) // PS_PER_NS
    return 1 << max(0, estimate.bit_length() - QUANTUM_BITS)


def _room_and_ps(shares: BaseShares, device: Device) -> tuple[Fraction, int]:
    """Return the part of all layers that a device has room for, and its time in ps for the MLPs of all layers."""
    nbytes, ps = 0, 0
    for kind, count in sequence_of(shares.model):
        layers = shares.kinds[kind]
        units = layers.mlp.units
        whole = whole_heads(layers.attention.num_kv_heads)
        nbytes += count * (shares.attention_bytes(kind, whole, True) + units * shares.unit_bytes(kind))
        ps += count * units * shares.unit(kind).ps(device)
    return Fraction(device.capacity_bytes, nbytes), max(1, ps)


def shared_ps(devices: Sequence[tuple[Fraction, int]]) -> int:
    """Return the time of work that devices do in parallel, in ps, rounded down.

    ``devices``: for each, the part of the work that it has room for, and its time for all of it. The time t solves
    Σ min(room, t / ps) = 1: devices that are full at t are taken out one by one, in the order in which they fill.
    """
    left, speed, time_ps = Fraction(1), sum((Fraction(1, ps) for _, ps in devices), Fraction(0)), Fraction(0)
    for room, ps in sorted(devices, key=lambda device: device[0] * device[1]):
        time_ps = left / speed
        if time_ps <= room * ps:
            break
        left -= room
        speed -= Fraction(1, ps)
    return math.floor(time_ps)
