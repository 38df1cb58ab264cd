"""Predicted time: pure functions of bytes, floating-point operations, a device and a link.

A share is limited by its memory traffic or by its arithmetic, whichever takes longer (the roofline model). 80 % of
the datasheet bandwidth predicts published per-layer profiles of A100, L4, T4 and V100 within 6 %; of the datasheet
rate, half is taken for matrix products as narrow as a draft tree. Integers, rounded up, so that every machine agrees.
"""

from plans.schema import Device, Link

BANDWIDTH_EFFICIENCY = (4, 5)
FLOPS_EFFICIENCY = (1, 2)
PS_PER_S = 10**12
PS_PER_NS = 1000


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up, for a >= 0 and b > 0."""
    return -(-a // b)


def share_ps(device: Device, traffic_bytes: int, flops: int) -> int:
    """Time in ps in which ``device`` reads ``traffic_bytes`` and performs ``flops``."""
    memory = ceil_div(
        traffic_bytes * PS_PER_S * BANDWIDTH_EFFICIENCY[1], device.bandwidth_bytes_per_s * BANDWIDTH_EFFICIENCY[0]
    )
    arithmetic = ceil_div(flops * PS_PER_S * FLOPS_EFFICIENCY[1], device.flops_per_s * FLOPS_EFFICIENCY[0])
    return max(memory, arithmetic)


def share_ns(device: Device, traffic_bytes: int, flops: int) -> int:
    """The same in ns."""
    return ceil_div(share_ps(device, traffic_bytes, flops), PS_PER_NS)


def rounds(members: int) -> int:
    """Rounds of a tree over ``members`` processes: the logarithm to base 2, rounded up."""
    return (members - 1).bit_length()


def all_reduce_ns(link: Link | None, members: int, message_bytes: int) -> int:
    """Reduce and broadcast along a tree for the latency, a ring for the bytes; 0 within one device."""
    if members == 1:
        return 0
    assert link is not None
    ring = ceil_div(2 * (members - 1) * message_bytes * 10**9, members * link.bandwidth_bytes_per_s)
    return 2 * rounds(members) * link.latency_ns + ring


def broadcast_ns(link: Link | None, members: int, message_bytes: int) -> int:
    """A broadcast, or a gather of ``message_bytes`` in all, along a tree; 0 within one device."""
    if members == 1:
        return 0
    assert link is not None
    return rounds(members) * (link.latency_ns + ceil_div(message_bytes * 10**9, link.bandwidth_bytes_per_s))
