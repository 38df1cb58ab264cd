"""Reading NVML: records of its answers, None for unsupported figures, an error that names any other failed call."""

from typing import Any

import pynvml
import pytest

from planner.errors import DetectionError
from planner.hardware.nvml import read_machine
from tests.planner.hardware.nvml_recording import Recording


def test_the_figures_of_a_gpu_are_read() -> None:
    machine = read_machine(Recording("a100x4-nvlink"))
    assert machine.driver == "535.129.03"
    first = machine.gpus[0]
    assert (first.name, first.pci) == ("NVIDIA A100-SXM4-40GB", "00000000:03:00.0")
    assert first.uuid.startswith("GPU-")
    assert first.total_bytes == 40 << 30
    assert first.reserved_bytes is not None
    assert 0 < first.reserved_bytes < 1 << 30
    assert (first.bus_bits, first.memory_mhz, first.cores, first.core_mhz) == (5120, 1215, 6912, 1410)
    assert (first.pcie_generation, first.pcie_width, first.mig, first.slices) == (4, 16, False, ())
    assert set(machine.ancestors.values()) == {pynvml.NVML_TOPOLOGY_SYSTEM}
    assert set(machine.peers.values()) == {True}


def test_links_straight_to_a_gpu_are_counted_per_pair() -> None:
    machine = read_machine(Recording("a100x4-nvlink"))
    assert {(link.count, link.generation, link.switched) for link in machine.nvlinks.values()} == {(4, 3, False)}
    assert len(machine.nvlinks) == 6


def test_links_to_a_switch_reach_every_gpu_that_has_them() -> None:
    machine = read_machine(Recording("h100x8-nvswitch"))
    # The driver reports NVLink version 5.0 for these links, but an H100 has generation 4.
    assert {(link.count, link.generation, link.switched) for link in machine.nvlinks.values()} == {(18, 4, True)}
    assert len(machine.nvlinks) == 28


def test_the_remote_type_of_links_is_inferred_if_the_driver_lacks_the_call() -> None:
    recording = Recording("h100x8-nvswitch")
    for device in recording.data["devices"]:
        for link in device["links"]:
            link["nvmlDeviceGetNvLinkRemoteDeviceType"] = {"error": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}
    assert len(read_machine(recording).nvlinks) == 28
    recording = Recording("a100x4-nvlink")
    for device in recording.data["devices"]:
        for link in device["links"]:
            link["nvmlDeviceGetNvLinkRemoteDeviceType"] = {"error": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}
    assert {(link.count, link.switched) for link in read_machine(recording).nvlinks.values()} == {(4, False)}


def test_an_unknown_nvlink_generation_is_none() -> None:
    recording = Recording("a100x4-nvlink")
    for device in recording.data["devices"]:
        for link in device["links"]:
            link["nvmlDeviceGetNvLinkVersion"] = pynvml.NVML_NVLINK_VERSION_6_0
    assert {link.generation for link in read_machine(recording).nvlinks.values()} == {None}


def test_an_old_driver_answers_in_bytes_and_lacks_calls() -> None:
    (gpu,) = read_machine(Recording("t4-old-driver")).gpus
    assert (gpu.name, gpu.pci, gpu.total_bytes) == ("Tesla T4", "00000000:00:1E.0", 15843721216)
    assert gpu.reserved_bytes is gpu.bus_bits is gpu.cores is None
    assert gpu.mig is False


def test_mig_slices_are_those_that_exist() -> None:
    gpus = read_machine(Recording("a100-mig")).gpus
    assert [(part.memory_bytes >> 20, part.compute_slices) for part in gpus[0].slices] == [
        (40192, 3),
        (19968, 2),
        (9728, 1),
    ]
    assert [gpu.mig for gpu in gpus] == [True, False]


def changed(code: int, call: str) -> Recording:
    recording = Recording("rtx4090x2-pcie")
    recording.data["devices"][1][call] = {"error": code}
    return recording


class NoDriver(Recording):
    def nvmlInit(self) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)


REFUSALS: list[tuple[Any, str]] = [
    (
        NoDriver("gb10"),
        "no GPU can be detected: NVML says Driver Not Loaded: "
        "install the NVIDIA driver, or write the inventory by hand",
    ),
    (
        Recording("gb10", devices=[]),
        "no GPU can be detected: NVML counts 0 devices: write the inventory by hand",
    ),
    (
        changed(pynvml.NVML_ERROR_GPU_IS_LOST, "nvmlDeviceGetMaxPcieLinkWidth"),
        "nvmlDeviceGetMaxPcieLinkWidth: NVML says GPU is lost: this GPU cannot be detected",
    ),
    (
        changed(pynvml.NVML_ERROR_NOT_SUPPORTED, "nvmlDeviceGetName"),
        "nvmlDeviceGetName: NVML says Not Supported: this GPU cannot be detected",
    ),
]


@pytest.mark.parametrize(("library", "message"), REFUSALS, ids=["no-driver", "no-gpu", "lost", "nameless"])
def test_machines_that_cannot_be_read_are_refused(library: Any, message: str) -> None:
    with pytest.raises(DetectionError) as caught:
        read_machine(library)
    assert str(caught.value) == message
    assert caught.value.exit_code == 5
    assert library.open == 0


@pytest.mark.parametrize(
    "name",
    ["RTX\nhosts: []", "RTX\x1b[31m", "RTX\u2028 4090", "RTX\x85", {"latin-1": "RTX\xe9"}, {"decoded": "RTX\xe9"}],
)
def test_a_name_that_cannot_stand_in_a_line_is_an_error(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording("rtx4090x2-pcie")
    value = name if isinstance(name, str) else next(iter(name.values())).encode("latin-1")

    def get_name(_handle: Any) -> Any:
        return value.decode() if "decoded" in name else value

    monkeypatch.setattr(recording, "nvmlDeviceGetName", get_name, raising=False)
    with pytest.raises(DetectionError) as caught:
        read_machine(recording)
    assert str(caught.value) == (
        f"nvmlDeviceGetName: found {value!r}, expected printable UTF-8: this GPU cannot be detected: write the "
        "inventory by hand"
    )
