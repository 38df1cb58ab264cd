"""Checks of a plan's inventory: devices, links and measured rates."""

from dataclasses import replace
from typing import Any

import pytest

from plans.check import group_transport
from tests.plans.violations import violations_of
from tests.sample_plans import MIB, edited, nvlink_plan, one_device_plan, two_stage_plan

BESIDE = {"devices": 2, "bandwidth_bytes_per_s": 1, "flops_per_s": 1, "overhead_ns": 10**6}
"""Rates of a device beside another one."""
QUICK = BESIDE | {"bandwidth_bytes_per_s": 9, "flops_per_s": 80}


def products(*rates: tuple[int, int]) -> dict[str, Any]:
    """Return measured rates with products of so many bytes and operations per second."""
    fields = [{"bandwidth_bytes_per_s": nbytes, "flops_per_s": flops} for nbytes, flops in rates]
    return {"products": fields, "row_ns": 0, "tree_ns": 0}


def scores(*times: tuple[int, int]) -> list[dict[str, int]]:
    """Return times of attention by dims of a head."""
    return [{"head_dim": dims, "ns": ns} for dims, ns in times]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("inventory.hosts[0].name", "zzz", "inventory.hosts: found [zzz, right], expected distinct names in order"),
        ("inventory.network", None, "inventory.network: found nothing, expected a link, as there are 2 hosts"),
        (
            "inventory.network.bandwidth_bytes_per_s",
            0,
            "inventory.network.bandwidth_bytes_per_s: found 0, expected at least 1",
        ),
        (
            "inventory.network.sums",
            [{"members": 2, "ns": 9}, {"members": 4, "ns": 8}],
            "inventory.network.sums[1].ns: found 8, expected at least 9, which fewer members take",
        ),
        (
            "inventory.network.awake_ns",
            10**9,
            "inventory.network.awake_ns: found 1000000000, expected at most 20000, the latency to who sleeps",
        ),
        (
            "inventory.devices[0].together",
            [{"devices": 1, "bandwidth_bytes_per_s": 1, "flops_per_s": 1, "overhead_ns": 10**6}],
            "inventory.devices[0].together[0].devices: found 1, expected more than 1",
        ),
        (
            "inventory.devices[0].together",
            [{"devices": 2, "bandwidth_bytes_per_s": 1, "flops_per_s": 10**12, "overhead_ns": 10**6}],
            "inventory.devices[0].together[0].flops_per_s: found 1000000000000, "
            "expected from 1 to 50000000000, the rate with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"pass_ns": 10**5}],
            "inventory.devices[0].together[0].pass_ns: found 100000, "
            "expected at least 150000, the time with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"table_ns": 2 * 10**6}, BESIDE | {"devices": 3}],
            "inventory.devices[0].together[1].table_ns: found nothing, which means 1000000, "
            "expected at least 2000000, the time with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"flops_per_s": 9, "measured": products((1, 3), (1, 5), (1, 8))}],
            "inventory.devices[0].together[0].measured.products: found first bandwidth and last rate (1, 8), "
            "expected those of the device, (1, 9)",
        ),
        (
            "inventory.devices[0].together",
            [
                BESIDE
                | {"bandwidth_bytes_per_s": 50, "flops_per_s": 99, "measured": products((50, 50), (9, 50), (8, 99))}
            ],
            "inventory.devices[0].together[0].measured.products[0]: found a product that others make slower, "
            "expected products on a convex curve",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"measured": products((1, 1), (1, 1))}],
            "inventory.devices[0].together[0].measured.products[1]: found 1 bytes and 1 operations per second, "
            "expected fewer bytes and more operations than of the one before",
        ),
        (
            "inventory.devices[0].together",
            [
                QUICK | {"measured": products((9, 10), (1, 80))},
                QUICK | {"devices": 3, "measured": products((9, 70), (8, 80))},
            ],
            "inventory.devices[0].together[1].measured.products: found a product that is faster, "
            "expected none faster than with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [QUICK | {"measured": products((9, 10), (1, 80))}, QUICK | {"devices": 3}],
            "inventory.devices[0].together[1].measured.products: found a product that is faster, "
            "expected none faster than with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"measured": products((2, 1), (1, 1))}, BESIDE],
            "inventory.devices[0].together[0].measured.products: found first bandwidth and last rate (2, 1), "
            "expected those of the device, (1, 1)",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"measured": products((1, 1), (1, 2)) | {"scores": [{"head_dim": 8, "ns": 9}]}}],
            "inventory.devices[0].together[0].measured.scores: found heads of [8] dims, "
            "expected [], as with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"measured": products((1, 1), (1, 2)) | {"scores": scores((8, 9), (16, 19))}}],
            "inventory.devices[0].together[0].measured.scores[1].ns: found 19, expected at most 18, as 8 dims take 9",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"measured": products((1, 1), (1, 2)) | {"scores": scores((8, 9), (8, 9))}}],
            "inventory.devices[0].together[0].measured.scores[1].head_dim: found 8, expected more than 8",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"measured": products((1, 1), (1, 2)) | {"scores": scores((8, 0))}}],
            "inventory.devices[0].together[0].measured.scores[0].ns: found 0, expected at least 1",
        ),
        (
            "inventory.devices[0].together",
            [
                QUICK | {"measured": products((9, 10), (1, 80)) | {"scores": scores((8, 9))}},
                QUICK | {"devices": 3, "measured": products((9, 10), (1, 80)) | {"scores": scores((8, 7))}},
            ],
            "inventory.devices[0].together[1].measured.scores[0].ns: found 7, "
            "expected at least 9, the time with fewer devices",
        ),
        (
            "inventory.hosts[0].pairs[0].b",
            "cpu2",
            "inventory.hosts[0].pairs[0]: found cpu0 and cpu2, expected two devices of host left",
        ),
        (
            "inventory.devices[3].id",
            "cpu2",
            "inventory.devices[2].id: found cpu2, expected another id: 2 devices have this one",
        ),
        (
            "inventory.devices[3].id",
            "a/b",
            "inventory.devices[3].id: found 'a/b', "
            "expected at most 64 letters, digits, '.', '_' and '-': it names a file",
        ),
        (
            "inventory.devices[0].id",
            "x",
            "inventory.devices: found [x, cpu1, cpu2, cpu3], expected the order of hosts, then of ids",
        ),
        ("inventory.devices[3].host", "box", "inventory.devices[3].host: found box, expected one of left, right"),
        (
            "inventory.devices[3].reserve_bytes",
            7 * MIB,
            "inventory.devices[3].reserve_bytes: found 7340032, expected at most the memory, 6291456",
        ),
        ("inventory.devices[3].ordinal", 1, "inventory.devices[3].ordinal: found 1, expected 0 for a CPU"),
    ],
)
def test_each_violation_of_an_inventory_is_reported(path: str, value: Any, message: str) -> None:
    assert message in violations_of(edited(two_stage_plan(), path, value))


def test_devices_are_bounded() -> None:
    plan = one_device_plan()
    devices = tuple(replace(plan.inventory.devices[0], id=f"cpu{number}") for number in range(4097))
    plan = replace(plan, inventory=replace(plan.inventory, devices=devices))
    assert "inventory.devices: found 4097 devices, expected at most 4096" in violations_of(plan)


def test_transports_of_groups() -> None:
    inventory = nvlink_plan().inventory
    assert group_transport(inventory, ["gpu0"]) == "local"
    assert group_transport(inventory, ["gpu0", "gpu0"]) == "local"
    assert group_transport(inventory, ["gpu0", "gpu3"]) == "nccl"
    one_gpu = edited(nvlink_plan(), "inventory.devices[3].ordinal", 0).inventory
    assert group_transport(one_gpu, ["gpu0", "gpu3"]) == "shm"
    assert group_transport(one_gpu, ["gpu0", "gpu1"]) == "nccl"
    gloo_only = edited(nvlink_plan(), "inventory.hosts[0].transport", "gloo").inventory
    assert group_transport(gloo_only, ["gpu0", "gpu3"]) == "gloo"
