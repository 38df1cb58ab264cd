"""A plan is refused for devices in use that cannot run it; unused ones may be of any kind."""

import dataclasses

import pytest

from plans.check import check
from plans.schema import DType, Plan
from plans.usable import by_reason, unusable_devices
from tests.sample_plans import nvlink_plan

PLAN = nvlink_plan()
USED = [line.device for line in PLAN.memory]


def with_capability(plan: Plan, name: str, capability: int | None) -> Plan:
    devices = plan.inventory.devices
    changed = (dataclasses.replace(d, compute_capability=capability) if d.id == name else d for d in devices)
    return dataclasses.replace(plan, inventory=dataclasses.replace(plan.inventory, devices=tuple(changed)))


def test_a_device_in_use_that_cannot_run_the_dtype_is_a_violation() -> None:
    plan = with_capability(PLAN, USED[1], 75)
    index = [device.id for device in plan.inventory.devices].index(USED[1])
    assert [*map(str, check(plan))] == [
        f"inventory.devices[{index}].compute_capability: found 75, "
        "expected at least 80 for attention in bfloat16: plan with --dtype float16 to use it"
    ]


def test_an_unused_device_may_be_of_any_kind() -> None:
    first, *_ = PLAN.inventory.devices
    spare = dataclasses.replace(first, id=f"{PLAN.inventory.devices[-1].id}9", compute_capability=60)
    devices = (*PLAN.inventory.devices, spare)
    plan = dataclasses.replace(PLAN, inventory=dataclasses.replace(PLAN.inventory, devices=devices))
    assert check(plan) == ()
    assert [*unusable_devices(plan.inventory, plan.options, plan.model, plan.draft)] == [spare.id]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes_run_on_every_capability(dtype: DType) -> None:
    plan = with_capability(PLAN, USED[0], 60)
    options = dataclasses.replace(plan.options, dtype=dtype)
    assert unusable_devices(plan.inventory, options, plan.model, plan.draft) == {}


def test_a_reason_of_many_devices_is_one_line() -> None:
    lines = by_reason({f"g{number}": "too old" for number in range(100)} | {"other": "too small"})
    first = ", ".join(f"g{number}" for number in range(16))
    assert lines == [f"{first}, ... of 100: too old", "other: too small"]
