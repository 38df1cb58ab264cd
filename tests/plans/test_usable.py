"""A plan is refused for devices in use that cannot run it; unused ones may be of any kind."""

import dataclasses

from planner.hardware.catalog import catalog
from plans.check import check
from plans.schema import Plan
from plans.usable import by_reason, runs_kernels, unusable_devices
from tests.sample_plans import nvlink_plan

PLAN = nvlink_plan()
USED = [line.device for line in PLAN.memory]


def with_capability(plan: Plan, name: str, capability: int | None) -> Plan:
    devices = plan.inventory.devices
    changed = (dataclasses.replace(d, compute_capability=capability) if d.id == name else d for d in devices)
    return dataclasses.replace(plan, inventory=dataclasses.replace(plan.inventory, devices=tuple(changed)))


def test_a_device_in_use_that_is_too_old_is_a_violation() -> None:
    plan = with_capability(PLAN, USED[1], 75)
    index = [device.id for device in plan.inventory.devices].index(USED[1])
    assert [*map(str, check(plan))] == [
        f"inventory.devices[{index}].compute_capability: found 75, expected at least 80 (8.0): plan again, without it"
    ]


def test_an_unused_device_may_be_of_any_kind() -> None:
    first, *_ = PLAN.inventory.devices
    spare = dataclasses.replace(first, id=f"{PLAN.inventory.devices[-1].id}9", compute_capability=60)
    devices = (*PLAN.inventory.devices, spare)
    plan = dataclasses.replace(PLAN, inventory=dataclasses.replace(PLAN.inventory, devices=devices))
    assert check(plan) == ()
    assert [*unusable_devices(plan.inventory)] == [spare.id]


def test_the_kernels_are_compiled_for_every_gpu_of_the_catalogue_that_plans_may_use() -> None:
    """``tools/cubins.py`` compiles for the first; the others have no tensor cores that Triton knows."""
    gpus = {name: kind.compute_capability for name, kind in catalog().devices.items() if kind.compute_capability}
    assert {capability for capability in gpus.values() if runs_kernels(capability)} == {
        80,
        86,
        87,
        89,
        90,
        100,
        103,
        110,
        120,
        121,
    }
    assert sorted(name for name, capability in gpus.items() if not runs_kernels(capability)) == [
        *("p100-16g", "p100-16g-sxm", "p40", "quadro-rtx-6000", "quadro-rtx-8000", "rtx-2080-ti", "t4", "titan-rtx"),
        *("v100-16g", "v100-16g-pcie", "v100-32g", "v100-32g-pcie", "v100s-32g"),
    ]


def test_a_reason_of_many_devices_is_one_line() -> None:
    lines = by_reason({f"g{number}": "too old" for number in range(100)} | {"other": "too small"})
    first = ", ".join(f"g{number}" for number in range(16))
    assert lines == [f"{first}, ... of 100: too old", "other: too small"]
