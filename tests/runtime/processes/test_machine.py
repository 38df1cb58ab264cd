"""Physical devices and those of the plan: names, and what of CUDA's environment a process may use."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from plans.schema import Device, Plan
from runtime.errors import MachineError
from runtime.processes.machine import check_machine, device_errors, is_named, show_device, visible_index
from tests.plan_factory import make_device
from tests.sample_plans import one_device_plan


@pytest.mark.parametrize(
    ("name", "expected", "same"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100", True),
        ("NVIDIA A100-SXM4-80GB", "A10", False),
        ("NVIDIA A10", "A10", True),
        ("NVIDIA A10G", "A10", False),
        ("NVIDIA L40S", "L40", False),
        ("NVIDIA L4", "L4", True),
        ("NVIDIA H200", "H20", False),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", True),
        ("NVIDIA GeForce RTX 4090 D", "RTX 4080", False),
        ("Tesla V100-SXM2-32GB", "V100", True),
        ("anything", "", True),
    ],
)
def test_names_are_whole_words(name: str, expected: str, same: bool) -> None:
    assert is_named(name, expected) == same


GPU = replace(make_device("gpu1"), kind="cuda", type="h100-80g", ordinal=1)
KNOWN = replace(GPU, uuid="GPU-5c0ffee0-1111-2222-3333-444455556666")
SLICE = replace(GPU, uuid="MIG-5c0ffee0-1111-2222-3333-444455556666")
OTHER = "GPU-aaaaaaaa"


@pytest.mark.parametrize(
    ("device", "visible", "index"),
    [
        (GPU, None, 1),
        (GPU, "1", 0),
        (GPU, "3, 1", 1),
        (KNOWN, "0,1,2", 1),
        (KNOWN, f"{OTHER},GPU-5c0f", 1),
        (KNOWN, KNOWN.uuid, 0),
        (SLICE, None, 0),
        (SLICE, SLICE.uuid, 0),
        (GPU, "", None),
        (GPU, "-1", None),
        (GPU, "0,2", None),
        (GPU, OTHER, None),
        (KNOWN, f"0,{OTHER}", None),
        (SLICE, "1", None),
        (SLICE, "MIG-aaaa", None),
    ],
)
def test_visible_devices_of_the_caller_are_mapped_or_refused(
    device: Device, visible: str | None, index: int | None
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    if index is not None:
        assert visible_index(device, environment) == index
        return
    expected = rf"^device gpu1: CUDA_VISIBLE_DEVICES is '{visible}', which hides it, expected .* in it: add it, unset"
    with pytest.raises(MachineError, match=expected):
        visible_index(device, environment)


def test_a_process_sees_gpus_in_the_order_of_the_plan_and_of_slices_its_own() -> None:
    environment = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    show_device(GPU, environment, initialised=False)
    assert environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    for visible in ({}, {"CUDA_VISIBLE_DEVICES": f"MIG-aaaa,{SLICE.uuid}"}):
        environment = dict(visible)
        show_device(SLICE, environment, initialised=False)
        assert environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": SLICE.uuid}
    environment = {}
    show_device(make_device("cpu0"), environment, initialised=True)
    assert environment == {}


@pytest.mark.parametrize(
    ("device", "environment", "initialised", "message"),
    [
        (GPU, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, False,
         "CUDA_VISIBLE_DEVICES is '1' and CUDA_DEVICE_ORDER is 'FASTEST_FIRST': a plan counts GPUs by PCI address"),
        (SLICE, {"CUDA_VISIBLE_DEVICES": "0"}, False, "which hides it, expected MIG-5c0ffee0"),
        (SLICE, {}, True, "CUDA is in use in this program already, and CUDA_VISIBLE_DEVICES is not set: set CUDA_VIS"),
        (GPU, {}, True, "CUDA is in use in this program already, and counted its GPUs without CUDA_DEVICE_ORDER: set"),
    ],
)  # fmt: skip
def test_an_environment_that_cannot_be_mapped_is_refused_by_name(
    device: Device, environment: dict[str, str], initialised: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(MachineError, match=f"^device gpu1: .*{message}"):
        show_device(device, dict(environment), initialised=initialised)


class Gpus:
    """Stands for the GPUs that torch reports, where there are none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *memory_bytes: int) -> None:
        self._memory_bytes, self.capability = memory_bytes, 90
        for name, value in (("is_available", lambda: True), ("device_count", lambda: len(memory_bytes)),
                            ("get_device_properties", self.properties)):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    def properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(
            name="NVIDIA H100", total_memory=self._memory_bytes[index], uuid=f"{index}-uuid", pci_domain_id=0,
            pci_bus_id=0x41 + index, pci_device_id=0, major=self.capability // 10, minor=self.capability % 10,
        )  # fmt: skip


def plan_of(*devices: Device) -> Plan:
    plan = one_device_plan()
    memory = tuple(replace(plan.memory[0], device=device.id) for device in devices)
    return replace(plan, inventory=replace(plan.inventory, devices=devices), memory=memory)


def test_a_gpu_is_compared_with_the_uuid_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch, 1 << 36, 1 << 36)
    here = replace(GPU, uuid="GPU-1-uuid")
    for device in (GPU, here):
        check_machine(plan_of(device), device)
    elsewhere = replace(GPU, uuid="GPU-0-uuid")
    message = "cuda:1 has UUID GPU-1-uuid and PCI address 00000000:42:00.0, expected GPU-0-uuid: run where the plan was"
    with pytest.raises(MachineError, match=message):
        check_machine(plan_of(elsewhere), elsewhere)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,1")
    with pytest.raises(
        MachineError, match=r"cuda:2 is not there: .* has 2 CUDA devices with CUDA_VISIBLE_DEVICES='7,5,1'"
    ):
        check_machine(plan_of(GPU), GPU)


def test_a_gpu_is_compared_with_the_compute_capability_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch, 1 << 36, 1 << 36)
    same, other = (replace(GPU, compute_capability=capability) for capability in (90, 80))
    check_machine(plan_of(same), same)
    message = "cuda:1 has compute capability 9.0, the plan's h100-80g has 8.0: build a plan for this machine"
    with pytest.raises(MachineError, match=message):
        check_machine(plan_of(other), other)


def test_a_gpu_that_the_kernels_are_not_compiled_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(monkeypatch, 1 << 36, 1 << 36)
    gpus.capability = 75
    with pytest.raises(MachineError, match=r"cuda:1 has compute capability 7\.5, expected at least 8\.0, whose tensor"):
        check_machine(plan_of(GPU), GPU)


def test_a_slice_needs_its_own_memory_and_parts_of_a_gpu_need_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = [replace(SLICE, id=f"s{number}", uuid=f"MIG-{number}", memory_bytes=70 << 30) for number in range(2)]
    Gpus(monkeypatch, 70 << 30)
    for device in slices:
        check_machine(plan_of(*slices), device)
    parts = [replace(GPU, id=f"p{number}", ordinal=0, memory_bytes=70 << 30) for number in range(2)]
    with pytest.raises(MachineError, match="bytes of memory, the plan needs 150323855360"):
        check_machine(plan_of(*parts), parts[0])


@pytest.mark.parametrize("kind", [torch.AcceleratorError, torch.OutOfMemoryError])
def test_an_error_of_cuda_is_that_of_the_device(kind: type[RuntimeError]) -> None:
    with pytest.raises(MachineError, match=r"^device gpu1: CUDA error: an illegal memory access$"), device_errors(GPU):
        raise kind("CUDA error: an illegal memory access\nCUDA kernel errors might be asynchronously reported")
    with pytest.raises(RuntimeError, match="a bug"), device_errors(GPU):
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("gpus", "visible", "index"), [("2,5", None, 5), ("5, 3", "0,3", 1), ("0,1", None, 1), ("7,6", "6", 0)]
)
def test_a_plan_runs_on_the_gpus_of_a_replica(gpus: str, visible: str | None, index: int) -> None:
    environment = {"EAGLEPLAN_GPUS": gpus} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert visible_index(GPU, environment) == index


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        (GPU, "2", "EAGLEPLAN_GPUS: found '2', expected at least 2 GPUs, as device gpu1 has ordinal 1"),
        (GPU, "2,2", "found '2,2', expected distinct numbers of GPUs"),
        (GPU, "", "found '', expected distinct numbers"),
        (GPU, "GPU-1,GPU-2", "expected distinct numbers"),
        # Other spellings of a number, of which two could be one GPU, and numbers that no host has.
        *(
            (GPU, f"2,{other}", "expected distinct numbers")
            for other in ("02", "+3", "1_0", "٣", "³", "-1", "3.0", "10000")
        ),
        (
            GPU,
            "2," + "9" * 5000,
            r"^EAGLEPLAN_GPUS: found '2,9{78}'\.\.\. of 5002 characters, expected distinct numbers of "
            "GPUs from 0 to 9999, as nvidia-smi writes them, like 2,3$",
        ),
        (KNOWN, "2,3", "the plan names device gpu1 by its UUID: unset it"),
    ],
)
def test_bad_gpus_of_a_replica_are_refused(device: Device, gpus: str, message: str) -> None:
    with pytest.raises(MachineError, match=message):
        visible_index(device, {"EAGLEPLAN_GPUS": gpus})
