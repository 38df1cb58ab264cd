"""Detected machines as inventories: types, memory, links, MIG slices, and figures that NVML does not report."""

import json
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
from click.testing import CliRunner, Result

from planner import cli
from planner.api import detecting
from planner.errors import DetectionError
from planner.hardware import detect_cpu
from planner.hardware.catalog import catalog
from planner.hardware.detect import Detected, detect
from planner.hardware.inventory import load_inventory
from planner.hardware.inventory_text import dump_inventory
from planner.hardware.nvml import read_machine
from plans.schema import Device
from tests.planner.hardware.nvml_recording import DIRECTORY, Recording

NAMES = sorted(file.stem for file in DIRECTORY.glob("*.json"))


def detected(name: str, dtype: Any = "bfloat16") -> Detected:
    return detect(read_machine(Recording(name)), "box0", dtype)


def device(description: Detected, device_id: str) -> Device:
    return next(device for device in description.inventory.at("bfloat16").devices if device.id == device_id)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "orin"])
def test_the_text_is_an_inventory(name: str, tmp_path: Path) -> None:
    description = detected(name)
    file = tmp_path / "inventory.yaml"
    file.write_text(description.text)
    assert load_inventory(file) == description.inventory
    file.write_text(dump_inventory(description.inventory))
    assert load_inventory(file) == description.inventory


@pytest.mark.parametrize("name", NAMES)
def test_bus_width_and_clock_agree_with_the_datasheets(name: str) -> None:
    """Assert that the bandwidth computed for GPUs missing from the catalogue is right for those in it."""
    for gpu in read_machine(Recording(name)).gpus:
        rows = [row for row in catalog().devices.values() if gpu.name.removeprefix("NVIDIA ") in row.names]
        for row in rows:
            if gpu.bus_bits and gpu.memory_mhz and row.bandwidth_bytes_per_s:
                computed = gpu.bus_bits // 8 * 2 * gpu.memory_mhz * 10**6
                assert computed == pytest.approx(row.bandwidth_bytes_per_s, rel=0.02)


def test_four_a100_in_a_mesh() -> None:
    description = detected("a100x4-nvlink")
    (host,) = description.inventory.hosts
    # Of the twelve NVLinks of a GPU four lead to each of the other three GPUs.
    assert (host.name, host.link.link_class, host.link.bandwidth_bytes_per_s) == ("box0", "nvlink3", 80 * 10**9)
    assert host.pairs == ()
    for ordinal, entry in enumerate(description.inventory.devices):
        assert (entry.type, entry.ordinal, entry.memory_bytes) == ("a100-40g", ordinal, 40326 << 20)
    for gpu, entry in zip(read_machine(Recording("a100x4-nvlink")).gpus, description.inventory.devices, strict=True):
        assert f"{gpu.uuid}, {gpu.pci}" in description.text
        assert entry.uuid == gpu.uuid


def test_eight_h100_on_a_switch() -> None:
    description = detected("h100x8-nvswitch")
    (host,) = description.inventory.hosts
    assert host.link == catalog().links["nvlink4"]
    assert "# NV18 to a switch: all" in description.text
    assert [entry.id for entry in description.inventory.devices] == [f"gpu{index}" for index in range(8)]
    assert {entry.type for entry in description.inventory.devices} == {"h100-80g"}


def test_two_4090_on_pcie() -> None:
    description = detected("rtx4090x2-pcie")
    (host,) = description.inventory.hosts
    assert host.link == catalog().links["pcie4"]
    assert "# PCIe, NODE, no direct copies: all" in description.text
    # The driver reserves 480 of 24564 MiB; torch reports the rest as 23.52 GiB.
    assert {(entry.type, entry.memory_bytes >> 20) for entry in description.inventory.devices} == {("rtx-4090", 24084)}


@pytest.mark.parametrize(("dtype", "sevenths"), [("bfloat16", 312_000), ("float32", 19_500)])
def test_slices_of_an_a100(dtype: str, sevenths: int) -> None:
    description = detected("a100-mig", dtype)
    expected = {"gpu0-mig0": (40192, 4, 3), "gpu0-mig1": (19968, 2, 2), "gpu0-mig2": (9728, 1, 1)}
    for device_id, (mebibytes, eighths, slices) in expected.items():
        entry = device(description, device_id)
        assert entry.memory_bytes == mebibytes << 20
        assert entry.bandwidth_bytes_per_s == 2039 * 10**9 * eighths // 8
        assert entry.flops_per_s == sevenths * slices // 7 * 10**9
        assert (entry.ordinal, entry.reported_name) == (0, "A100")
        assert entry.type not in catalog().devices
    gpu = read_machine(Recording("a100-mig")).gpus[0]
    assert [device(description, name).uuid for name in expected] == [part.uuid for part in gpu.slices]
    assert all(part.uuid.startswith("MIG-") for part in gpu.slices)
    assert (device(description, "gpu1").type, device(description, "gpu1").ordinal) == ("a100-80g", 1)
    (host,) = description.inventory.hosts
    assert (host.transport, host.link.link_class) == ("gloo", "pcie4")


def test_a_gpu_in_mig_mode_without_slices_is_left_out() -> None:
    recording = Recording("a100-mig")
    recording.data["devices"][0]["migs"] = {}
    description = detect(read_machine(recording), "box0", "bfloat16")
    assert [entry.id for entry in description.inventory.devices] == ["gpu1"]
    (line,) = description.left_out
    assert line.startswith("gpu0 (NVIDIA A100-SXM4-80GB, GPU-")
    assert line.endswith("): MIG is on and no slice is made, so that no program can use it")


def test_compute_instances_that_share_a_gpu_instance_are_left_out() -> None:
    """Each is a MIG device for which NVML reports the memory of all of them."""
    recording = Recording("a100-mig")
    migs = recording.data["devices"][0]["migs"]
    whole = migs["0"]
    for number, slices in (("0", 1), ("3", 2)):
        migs[number] = whole | {
            "nvmlDeviceGetName": f"NVIDIA A100-SXM4-80GB MIG {slices}c.3g.40gb",
            "nvmlDeviceGetUUID": f"MIG-6d4b9adb-ebcd-4f5e-89c1-8070b6d1308{number}",
            "nvmlDeviceGetAttributes_v2": whole["nvmlDeviceGetAttributes_v2"] | {"computeInstanceSliceCount": slices},
        }
    description = detect(read_machine(recording), "box0", "bfloat16")
    assert [entry.id for entry in description.inventory.devices] == ["gpu0-mig1", "gpu0-mig2", "gpu1"]
    assert [line.partition(" of NVIDIA")[0] for line in description.left_out] == [
        "gpu0-mig0 (NVIDIA A100-SXM4-80GB MIG 1c.3g.40gb, MIG-6d4b9adb-ebcd-4f5e-89c1-8070b6d13080",
        "gpu0-mig3 (NVIDIA A100-SXM4-80GB MIG 2c.3g.40gb, MIG-6d4b9adb-ebcd-4f5e-89c1-8070b6d13083",
    ]
    for line in description.left_out:
        assert line.partition("): ")[2] == (
            "one of 2 compute instances of GPU instance 1, which share its memory and bandwidth: give it one compute "
            "instance, with `nvidia-smi mig -i 0 -gi 1 -dci` and then `-cci` in the place of `-dci`, and detect again"
        )
    # The only compute instance of a GPU instance has all its memory, and the rate of its own slices.
    del migs["3"]
    alone = device(detect(read_machine(recording), "box0", "bfloat16"), "gpu0-mig0")
    assert (alone.memory_bytes, alone.bandwidth_bytes_per_s) == (40192 << 20, 2039 * 10**9 * 4 // 8)
    assert alone.flops_per_s == 312_000 // 7 * 10**9


def test_a_machine_of_unlike_gpus() -> None:
    description = detected("mixed")
    (host,) = description.inventory.hosts
    # The NVLink bridge of the two RTX 3090 has four links of 14 GB/s; the third card has eight PCIe lanes.
    assert (host.link.link_class, host.link.bandwidth_bytes_per_s) == ("pcie4", 11 * 10**9)
    (pair,) = host.pairs
    assert (pair.a, pair.b, pair.link.link_class) == ("gpu0", "gpu1", "nvlink3")
    assert pair.link.bandwidth_bytes_per_s == pytest.approx(0.8 * 4 * 14.0625e9, rel=1e-3)
    other = device(description, "gpu2")
    assert (other.type, other.reported_name) == ("rtx-4000-sff-ada-generation", "RTX 4000 SFF Ada Generation")
    assert other.bandwidth_bytes_per_s == 280_040 * 10**6
    assert other.flops_per_s == 2 * 6144 * 1560 * 10**6 // 10**9 * 10**9
    assert other.memory_bytes == 19995 << 20
    (line,) = description.left_out
    assert line.startswith("gpu3 (NVIDIA GeForce GT 710")
    missing = "bandwidth (bus width and clock), flops (cores and clock)"
    assert line.endswith(f"): not in the catalogue; NVML does not report {missing}: give them")
    assert "# - {id: gpu3, type: gt-710, ordinal: 3, uuid: " in description.text


def test_a_name_is_text_of_the_inventory_and_no_fields() -> None:
    recording = Recording("mixed")
    name = 'X", memory: 1 GiB} # \\ é'
    recording.data["devices"][2]["nvmlDeviceGetName"] = name
    other = device(detect(read_machine(recording), "box0", "bfloat16"), "gpu2")
    assert (other.reported_name, other.memory_bytes) == (name, 19995 << 20)


def test_memory_that_nvml_does_not_report_is_taken_from_the_catalogue() -> None:
    for name, kind in (("gb10", "gb10"), ("t4-old-driver", "t4")):
        description = detected(name)
        assert device(description, "gpu0").memory_bytes == catalog().devices[kind].memory_bytes
        assert "the catalogue's figure" in description.text


def test_types_that_differ_only_in_memory_need_its_size() -> None:
    with pytest.raises(DetectionError, match=r"one of jetson-agx-orin-64g, .*, which memory tells apart"):
        detected("orin")
    for mebibytes, kind in ((10240, "rtx-3080-10g"), (12288, "rtx-3080-12g"), (20480, "rtx-3080")):
        recording = Recording("rtx4090x2-pcie")
        del recording.data["devices"][1]
        gpu = recording.data["devices"][0]
        gpu["nvmlDeviceGetName"] = "NVIDIA GeForce RTX 3080"
        gpu["nvmlDeviceGetMemoryInfo_v2"] |= {"total": mebibytes << 20, "reserved": 350 << 20}
        description = detect(read_machine(recording), "box0", "bfloat16")
        assert device(description, "gpu0").type == kind
        assert device(description, "gpu0").memory_bytes == (mebibytes - 350) << 20


def test_nvlinks_of_an_unknown_generation_count_as_pcie() -> None:
    recording = Recording("a100x4-nvlink")
    for gpu in recording.data["devices"]:
        for link in gpu["links"]:
            link["nvmlDeviceGetNvLinkVersion"] = 99
    description = detect(read_machine(recording), "box0", "bfloat16")
    assert description.inventory.hosts[0].link.link_class == "pcie4"
    assert "4 NVLinks of a generation that the catalogue does not have, so PCIe" in description.text


def test_link_classes_of_the_catalogue_count_all_links_of_a_gpu() -> None:
    """NVIDIA publishes the sum of both directions; collectives reach four fifths of one direction."""
    for generation, both in ((1, 160), (2, 300), (3, 600), (4, 900), (5, 1800)):
        link = catalog().links[f"nvlink{generation}"]
        assert link.bandwidth_bytes_per_s == both // 2 * 8 // 10 * 10**9
    for generation in range(1, 6):
        larger = catalog().links[f"pcie{generation + 1}"].bandwidth_bytes_per_s
        assert larger == pytest.approx(2 * catalog().links[f"pcie{generation}"].bandwidth_bytes_per_s, rel=0.02)


# The command


def inventory(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["inventory", *(str(argument) for argument in arguments)])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let detection see the recorded machine of unlike GPUs."""
    monkeypatch.setattr(detecting, "read_machine", lambda: read_machine(Recording("mixed")))
    monkeypatch.setattr("socket.gethostname", lambda: "0123.cluster")


@pytest.mark.usefixtures("machine")
def test_the_command_prints_or_writes_the_inventory(tmp_path: Path) -> None:
    printed = inventory("--detect")
    assert printed.exit_code == 0
    assert '- name: "0123"\n' in printed.stdout
    assert printed.stderr.startswith("left out: gpu3 (NVIDIA GeForce GT 710")
    file = tmp_path / "inventory.yaml"
    written = inventory("--detect", file)
    assert (written.exit_code, written.stdout) == (0, "")
    assert file.read_text() == printed.stdout
    assert inventory(file).exit_code == 0
    assert json.loads(inventory("--detect", "--json").stdout)["left_out"]


@pytest.mark.usefixtures("machine")
def test_the_command_overwrites_nothing(tmp_path: Path) -> None:
    file = tmp_path / "inventory.yaml"
    file.write_text("mine")
    refused = inventory("--detect", file)
    assert refused.exit_code == 2
    assert f"error: {file}: cannot write the inventory: File exists: give a new file" in refused.stderr
    assert file.read_text() == "mine"
    assert inventory("--detect", tmp_path / "none" / "x.yaml").exit_code == 2


def test_without_a_gpu_the_command_measures_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(detecting, "read_machine", lambda: read_machine(Recording("gb10", devices=[])))
    monkeypatch.setattr(detect_cpu, "STREAM_BYTES", 16 << 20)
    monkeypatch.setattr(detect_cpu, "STREAM_THREAD_BYTES", 1 << 18)
    file = tmp_path / "x.yaml"
    result = inventory("--detect", file, "--json")
    assert result.exit_code == 0
    assert "left out: GPUs: no GPU can be detected: NVML counts 0 devices" in result.stderr
    (entry,) = json.loads(result.stdout)["inventory"]["devices"]
    assert (entry["id"], entry["type"], entry["kind"]) == ("cpu0", "cpu", "cpu")
    assert entry["memory_bytes"] <= psutil.virtual_memory().total
    assert entry["bandwidth_bytes_per_s"] > 10**8
    for word in ("memory", "reserve", "bandwidth", "flops"):
        assert f"{word}: " in file.read_text().split("- {")[0], "the comments say what was measured and how"
    arguments = ["build", "--gpus", str(file), "--plan-only", "--out", str(tmp_path / "p")]
    assert CliRunner().invoke(cli.main, arguments).exit_code == 0


def test_a_gpu_that_fails_to_answer_is_an_error_and_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording("rtx4090x2-pcie")
    recording.data["devices"][1]["nvmlDeviceGetName"] = {"error": pynvml.NVML_ERROR_GPU_IS_LOST}
    monkeypatch.setattr(detecting, "read_machine", lambda: read_machine(recording))
    result = inventory("--detect", "--json")
    assert result.exit_code == 5
    assert json.loads(result.stdout)["error"]["type"] == "DetectionError"
