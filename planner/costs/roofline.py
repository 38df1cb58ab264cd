"""Predicted time: pure functions of bytes, floating-point operations, a device and a link.

A share is limited by its memory traffic or by its arithmetic, whichever takes longer (the roofline model), at the parts
of a datasheet's rates in ``planner.efficiency``; on a device that was measured also by both (``plans.roofs``).
Integers, rounded up, so that every machine agrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from planner.efficiency import BANDWIDTH_EFFICIENCY, FLOPS_EFFICIENCY
from planner.integers import PS_PER_NS, PS_PER_S, ceil_div, rounds
from plans.cpu_times import SCORES, scores_ps
from plans.roofs import roofs_of
from plans.schema import Device, Link

REDUCTION_BYTES_PER_S = 180 * 10**9
"""Rate at which the kernel of an all-reduce copies and adds what crosses the links, for messages of up to about 1 MB:
1 MB over eight H100 takes 34 us, of which links of 360 GB/s explain 5 and latency 18
(https://github.com/sgl-project/sglang/pull/2904)."""


SCORE_FLOPS = 150
"""Operations of products in whose time a CPU does what a score of attention takes beside its own: exponential, sum,
mask. On one core with AVX2, 16 rows, 62 GFLOP/s of bfloat16, a score took 4.2, 6.9 and 12.4 ns with heads of 24, 64 and
128 dims, whose 4 operations per dim take 1.5, 4.1 and 8.3."""
SCORE_DIM_FLOPS = 4
"""Operations of a score for every dim of its head: a product with the key, and the sum with the value."""


def share_ps(device: Device, traffic_bytes: int, flops: int, scores: int = 0, head_dim: int = 0) -> int:
    """Time in ps in which ``device`` reads ``traffic_bytes`` and performs ``flops``.

    ``scores``: of attention with heads of so many dims, whose operations are among ``flops``; where they were measured
    they take what they took instead, and where products alone were, each the time of SCORE_FLOPS beside its own.
    """
    attention_ps = 0
    if device.measured is not None and device.measured.scores is None:
        flops += scores * SCORE_FLOPS
    elif device.measured is not None and device.measured.scores is not None and scores:
        flops -= SCORE_DIM_FLOPS * scores * head_dim
        attention_ps = scores_ps(device.measured.scores, scores, head_dim)
    (bytes_part, bytes_whole), (flops_part, flops_whole) = BANDWIDTH_EFFICIENCY, FLOPS_EFFICIENCY
    nominal_bytes, nominal_flops = traffic_bytes * bytes_whole * flops_part, flops * flops_whole * bytes_part
    divided = bytes_part * flops_part
    return attention_ps + max(
        ceil_div((nominal_bytes * p + nominal_flops * q) * PS_PER_S, divisor * divided)
        for p, q, divisor in roofs_of(device)
    )


def score_flops_per_s(device: Device) -> int:
    """Return the rate of products that would do the operations of attention in the time measured; 0 where it was not.

    That of the most dims is the highest, as more dims take no longer than in proportion.
    """
    if device.measured is None or device.measured.scores is None:
        return 0
    (reached, whole), most = FLOPS_EFFICIENCY, device.measured.scores[-1]
    return ceil_div(SCORE_DIM_FLOPS * most.head_dim * SCORES * whole * PS_PER_S, most.ns * reached * PS_PER_NS)


def share_ns(device: Device, traffic_bytes: int, flops: int) -> int:
    """Return that time in ns."""
    return ceil_div(share_ps(device, traffic_bytes, flops), PS_PER_NS)


def sum_latency_ns(link: Link, members: int) -> int:
    """Return the latency of an all-reduce: as measured, of more members in proportion to the rounds, or two trees."""
    if not link.sums:
        return 2 * rounds(members) * link.latency_ns
    largest = link.sums[-1]
    measured = next((own for own in link.sums if own.members >= members), largest)
    return ceil_div(measured.ns * rounds(max(members, measured.members)), rounds(measured.members))


def message_ns(link: Link, message_bytes: int, *, awake: bool = False) -> int:
    """Time of one message over one link; ``awake``: to who looks for it, where that makes a difference."""
    latency_ns = link.awake_ns if awake and link.awake_ns is not None else link.latency_ns
    return latency_ns + ceil_div(message_bytes * 10**9, link.bandwidth_bytes_per_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """One level of a group: ``count`` members, or parts that are themselves groups, connected by ``link``."""

    count: int
    link: Link | None
    """None: there is one alone."""


def all_reduce_ns(tiers: Sequence[Tier], message_bytes: int) -> int:
    """The latency of each tier, where it is not measured that of a reduction and a broadcast along a tree, and one ring
    for the bytes; 0 within one device.

    The kernel's own time per byte comes on top of that of the links.
    """
    members = _members(tiers)
    ring_bytes = 2 * (members - 1) * message_bytes
    reduced = ceil_div(ring_bytes * 10**9, members * REDUCTION_BYTES_PER_S)
    return _tree_and_ring_ns(tiers, trees=2, ring_bytes=ring_bytes, parts=members) + reduced


def broadcast_ns(tiers: Sequence[Tier], message_bytes: int, *, awake: bool = False) -> int:
    """A broadcast along a tree in each tier; 0 within one device. ``awake``: as for ``message_ns``.

    Through memory that was measured all receivers have the one message at once, and wake up beside each other.
    """
    total = 0
    for tier in tiers:
        if tier.count > 1:
            assert tier.link is not None
            times = rounds(tier.count) if tier.link.awake_ns is None else 1
            total += times * message_ns(tier.link, message_bytes, awake=awake)
    return total


def gather_ns(tiers: Sequence[Tier], message_bytes: int) -> int:
    """A gather of ``message_bytes`` in all on the leader, along a tree in each tier; 0 within one device.

    Members come to it at once, as to a sum: where sums were measured it has the latency of one.
    """
    total = 0
    for tier in tiers:
        if tier.count > 1:
            assert tier.link is not None
            if tier.link.sums:
                sent_ns = ceil_div(message_bytes * 10**9, tier.link.bandwidth_bytes_per_s)
                total += sum_latency_ns(tier.link, tier.count) + sent_ns
            else:
                total += rounds(tier.count) * message_ns(tier.link, message_bytes)
    return total


def all_gather_ns(tiers: Sequence[Tier], message_bytes: int) -> int:
    """Each member gets the messages of all the others, along a ring; 0 within one device."""
    return _tree_and_ring_ns(tiers, trees=1, ring_bytes=(_members(tiers) - 1) * message_bytes, parts=1)


def _members(tiers: Sequence[Tier]) -> int:
    return prod(tier.count for tier in tiers)


def _tree_and_ring_ns(tiers: Sequence[Tier], *, trees: int, ring_bytes: int, parts: int) -> int:
    """The latency of so many trees in each tier, and ``ring_bytes / parts`` over the slowest link of the ring."""
    latency, slowest = 0, 0
    for tier in tiers:
        if tier.count > 1:
            assert tier.link is not None
            latency += ceil_div(trees * sum_latency_ns(tier.link, tier.count), 2)
            slowest = max(slowest, ceil_div(ring_bytes * 10**9, parts * tier.link.bandwidth_bytes_per_s))
    return latency + slowest


def touched_bytes(expert_bytes: int, experts: int, picked: int, rows: int) -> int:
    """Return the expected bytes of the experts that ``rows`` rows pick, ``picked`` each at random, rounded up.

    An expert is left alone with probability (1 - picked/experts)^rows.
    """
    every, left = experts**rows, (experts - picked) ** rows
    return ceil_div(expert_bytes * experts * (every - left), every)
