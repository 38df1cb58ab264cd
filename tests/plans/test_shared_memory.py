"""Who shares memory, as an inventory says, and the bytes of an outbox."""

import dataclasses

import pytest

from plans.buffers import OUTBOX, device_buffers
from plans.check import group_transport
from plans.schema import Device, Inventory, Plan
from plans.shared_memory import CHANNELS_OFFSET, SLOT_BYTES, SLOTS, most_outbox_bytes, outbox_bytes, sharing
from tests.plan_factory import group, make_device, make_model, make_plan

MODEL = make_model(num_layers=2, num_kv_heads=4)


def plan_on(*devices: Device, network: str = "ethernet") -> Plan:
    """Return a plan of one stage on these devices; ``network``: class of the link between hosts."""
    plan = make_plan(MODEL, [group(MODEL, [device.id for device in devices], 2)], devices=list(devices))
    link = plan.inventory.network and dataclasses.replace(plan.inventory.network, link_class=network)
    inventory = dataclasses.replace(plan.inventory, network=link)
    transport = group_transport(inventory, [device.id for device in devices])
    stage = dataclasses.replace(plan.stages[0], transport=transport)
    return dataclasses.replace(plan, inventory=inventory, stages=(stage,), message_transport=transport)


def outboxes(plan: Plan) -> dict[str, int]:
    """Return the bytes of the outboxes in the memory table."""
    entries = ((device.id, buffer) for device in plan.devices for buffer in device_buffers(plan, device.id))
    return {name: buffer.nbytes for name, buffer in entries if buffer.name == OUTBOX}


A, B, C = make_device("a"), make_device("b"), make_device("c", host="other")


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (plan_on(A, B), ("a", "b")),
        (plan_on(A), ()),
        (plan_on(A, C), ()),
        (plan_on(A, C, network="shm"), ("a", "c")),
        (plan_on(A, B, C, network="shm"), ("a", "b", "c")),
    ],
)
def test_devices_of_one_machine_share_memory(plan: Plan, expected: tuple[str, ...]) -> None:
    assert sharing(plan, "a") == expected
    assert plan.stages[0].transport == ("shm" if expected else "local" if len(plan.devices) == 1 else "gloo")
    assert outboxes(plan) == dict.fromkeys(expected, outbox_bytes(len(expected)))
    assert outbox_bytes(len(expected)) <= most_outbox_bytes(plan.inventory) or not expected


def test_a_host_that_asks_for_gloo_shares_nothing() -> None:
    plan = plan_on(A, B)
    hosts = tuple(dataclasses.replace(host, transport="gloo") for host in plan.inventory.hosts)
    inventory: Inventory = dataclasses.replace(plan.inventory, hosts=hosts)
    assert group_transport(inventory, ["a", "b"]) == "gloo"


def test_an_outbox_holds_its_slots_and_a_channel_for_every_rank() -> None:
    assert outbox_bytes(1) >= SLOTS * SLOT_BYTES
    assert [outbox_bytes(ranks) >= CHANNELS_OFFSET + 64 * ranks for ranks in (2, 63, 4096)] == [True] * 3
    assert SLOTS & (SLOTS - 1) == 0
