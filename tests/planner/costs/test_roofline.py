"""Predicted times: roofline figures, collectives computed by hand, and monotonicity."""

import dataclasses
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.costs.roofline import (
    Tier,
    all_reduce_ns,
    broadcast_ns,
    gather_ns,
    message_ns,
    share_ns,
    share_ps,
    touched_bytes,
)
from planner.hardware.inventory import parse_inventory
from planner.integers import ceil_div, rounds
from plans.schema import Device, GroupSum, Link

LINK = Link(link_class="x", latency_ns=5_000, bandwidth_bytes_per_s=10_000_000_000)
LAYER_PARAMETERS = 8192 * (2 * 8192 + 2 * 1024 + 3 * 28672)
"""Parameters of one layer of Llama-2-70B: q and o, k and v, gate, up and down."""


def device(type_name: str) -> Device:
    listed = parse_inventory({"hosts": [{"name": "box", "devices": [{"id": "gpu0", "type": type_name}]}]}, "one")
    return listed.at("float16").devices[0]


def rounded(bandwidth: int, flops: int) -> Device:
    return dataclasses.replace(device("l4"), bandwidth_bytes_per_s=bandwidth, flops_per_s=flops)


def test_a_share_is_limited_by_memory_or_by_arithmetic() -> None:
    gpu = rounded(1_000_000_000_000, 100_000_000_000_000)
    assert share_ps(gpu, 800_000_000, 0) == 10**9  # 0.8 GB at 0.8 of 1 TB/s: 1 ms
    assert share_ps(gpu, 0, 50_000_000_000) == 10**9  # 50 GFLOP at half of 100 TFLOP/s
    assert share_ps(gpu, 800_000_000, 49_999_999_999) == 10**9
    assert share_ps(gpu, 800_000_000, 50_000_000_001) == 10**9 + 1
    assert share_ns(gpu, 800_000_001, 0) == 10**6 + 1, "rounded up"
    assert share_ns(gpu, 0, 0) == 0


@pytest.mark.parametrize(
    ("type_name", "microseconds"), [("a100-40g", 1375), ("l4", 7130), ("t4", 6685), ("v100-16g", 2377)]
)
def test_a_layer_of_llama_70b_takes_its_bytes_at_four_fifths_of_the_datasheet(
    type_name: str, microseconds: int
) -> None:
    """One token reads 1.71 GB per layer, at 0.8 of 1555, 300, 320 and 900 GB/s."""
    predicted = share_ns(device(type_name), 2 * LAYER_PARAMETERS, 2 * LAYER_PARAMETERS) / 1000
    assert predicted == pytest.approx(microseconds, rel=0.005)


def test_verification_of_many_rows_is_limited_by_arithmetic() -> None:
    gpu = device("l4")
    narrow, wide = (share_ns(gpu, 2 * LAYER_PARAMETERS, 2 * rows * LAYER_PARAMETERS) for rows in (60, 600))
    assert narrow == share_ns(gpu, 2 * LAYER_PARAMETERS, 0)
    assert wide > narrow


def alone(members: int, link: Link | None = LINK) -> tuple[Tier]:
    return (Tier(count=members, link=link),)


def test_a_message_takes_latency_and_bytes() -> None:
    link = Link(link_class="x", latency_ns=7, bandwidth_bytes_per_s=10**9)
    assert [message_ns(link, nbytes) for nbytes in (0, 1, 100)] == [7, 8, 107]


def test_collectives_by_hand() -> None:
    assert [rounds(n) for n in (0, 1, 2, 3, 4, 5, 8, 9)] == [0, 0, 1, 2, 2, 3, 3, 4]
    assert all_reduce_ns(alone(2), 18_000) == 2 * 5_000 + 1_800 + 100  # 2 * (1/2) * 18 kB at 10 and 180 GB/s
    assert all_reduce_ns(alone(4), 12_000) == 4 * 5_000 + 1_800 + 100  # 2 * (3/4)
    assert broadcast_ns(alone(2), 10_000) == 5_000 + 1_000
    assert broadcast_ns(alone(5), 10_000) == 3 * (5_000 + 1_000)
    assert all_reduce_ns(alone(1, None), 10_000) == broadcast_ns(alone(1, None), 10_000) == 0


def test_receivers_through_measured_memory_have_one_message_and_gathers_are_as_late_as_sums() -> None:
    link = dataclasses.replace(LINK, awake_ns=700, sums=(GroupSum(members=2, ns=300), GroupSum(members=4, ns=900)))
    assert [message_ns(link, 10_000, awake=awake) for awake in (False, True)] == [5_000 + 1_000, 700 + 1_000]
    assert message_ns(LINK, 10_000, awake=True) == message_ns(LINK, 10_000), "told alike, if no other figure is known"
    assert broadcast_ns(alone(5, link), 10_000) == 5_000 + 1_000
    assert broadcast_ns(alone(5, link), 10_000, awake=True) == 700 + 1_000
    assert [gather_ns(alone(members, link), 10_000) for members in (1, 2, 3)] == [0, 300 + 1_000, 900 + 1_000]
    assert gather_ns(alone(5), 10_000) == broadcast_ns(alone(5), 10_000)


def test_collectives_over_hosts_cross_the_network_as_often_as_there_are_hosts() -> None:
    slow = Link(link_class="net", latency_ns=40_000, bandwidth_bytes_per_s=1_000_000_000)
    tiers = (Tier(count=4, link=LINK), Tier(count=2, link=slow))
    # latency: trees over 4 devices and over 2 hosts; bytes: a ring of 8, 2 * (7/8) * 72 kB at 1 (network) and 180 GB/s
    assert all_reduce_ns(tiers, 72_000) == 2 * (2 * 5_000 + 40_000) + 126_000 + 700
    assert broadcast_ns(tiers, 10_000) == 2 * (5_000 + 1_000) + (40_000 + 10_000)
    one_each = (Tier(count=1, link=None), Tier(count=2, link=slow))
    assert all_reduce_ns(one_each, 10_000) == all_reduce_ns(alone(2, slow), 10_000)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 40), st.integers(1, 10**9))
def test_touched_bytes_count_experts_that_any_row_selects(experts: int, per_token: int, rows: int, nbytes: int) -> None:
    per_token = min(per_token, experts)
    expected = nbytes * experts * (1 - (1 - Fraction(per_token, experts)) ** rows)
    assert touched_bytes(nbytes, experts, per_token, rows) == math.ceil(expected)
    assert nbytes * per_token <= touched_bytes(nbytes, experts, per_token, rows) <= nbytes * experts


def test_touched_bytes_by_hand() -> None:
    assert touched_bytes(1000, 8, 2, 1) == 2000
    assert touched_bytes(1000, 8, 2, 2) == 3500  # 8 * (1 - (3/4)^2)
    assert touched_bytes(1000, 1, 1, 60) == 1000


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(0, 10**18), st.integers(0, 10**18))
def test_time_grows_with_traffic_flops_and_slower_devices(
    traffic: int, more_traffic: int, flops: int, more_flops: int
) -> None:
    gpu = rounded(1_000_000_000_000, 100_000_000_000_000)
    slower = rounded(900_000_000_000, 90_000_000_000_000)
    assert share_ps(gpu, traffic, flops) <= share_ps(gpu, traffic + more_traffic, flops + more_flops)
    assert share_ps(gpu, traffic, flops) <= share_ps(slower, traffic, flops)
    assert share_ps(gpu, traffic, flops) <= 1000 * share_ns(gpu, traffic, flops)


@given(st.integers(1, 64), st.integers(0, 10**12), st.integers(0, 10**9))
def test_collectives_grow_with_members_and_bytes(members: int, message: int, more: int) -> None:
    for collective in (all_reduce_ns, broadcast_ns):
        assert collective(alone(members), message) <= collective(alone(members + 1), message)
        assert collective(alone(members), message) <= collective(alone(members), message + more)
        wider = (*alone(members), Tier(count=2, link=LINK))
        assert collective(alone(members), message) <= collective(wider, message)


@given(st.integers(0, 10**30), st.integers(1, 10**20))
def test_division_rounds_up(a: int, b: int) -> None:
    assert (ceil_div(a, b) - 1) * b < a <= ceil_div(a, b) * b or a == ceil_div(a, b) == 0
