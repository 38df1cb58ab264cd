"""Detection on a machine without a GPU: measured figures of the CPU, and the inventory made of them."""

from pathlib import Path

import pytest

from planner.hardware import detect_cpu
from planner.hardware.detect_cpu import MIB, CpuFigures, describe_cpu, measure_cpu


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the measurements to milliseconds."""
    monkeypatch.setattr(detect_cpu, "STREAM_BYTES", 16 << 20)
    monkeypatch.setattr(detect_cpu, "STREAM_THREAD_BYTES", MIB // 4)
    monkeypatch.setattr(detect_cpu, "PRODUCT_SIZE", 128)


def test_measured_figures_are_plausible() -> None:
    figures = measure_cpu()
    assert 0 <= figures.used_bytes < figures.memory_bytes
    assert figures.stream_bytes == max(16 * MIB, figures.threads * MIB // 4)
    assert 10**8 < figures.bandwidth_bytes_per_s < 10**13
    assert 10**8 < figures.flops_per_s < 10**15


def test_memory_is_capped_by_the_limit_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect_cpu, "CGROUP_LIMIT", tmp_path / "memory.max")
    whole = measure_cpu().memory_bytes
    for text, limit in (("max\n", whole), (f"{512 * MIB}\n", 512 * MIB), (f"{2 * whole}\n", whole)):
        (tmp_path / "memory.max").write_text(text)
        assert measure_cpu().memory_bytes == limit


def test_the_inventory_has_the_figures_and_the_reason() -> None:
    figures = CpuFigures(
        name="Some CPU",
        threads=3,
        memory_bytes=1000 * MIB + 1,
        used_bytes=10 * MIB + 1,
        stream_bytes=64 * MIB,
        bandwidth_bytes_per_s=12_345_678_901,
        flops_per_s=98_765_432_109,
    )
    detected = describe_cpu(figures, "box", "no GPU can be detected: NVML says no: do this")
    (device,) = detected.inventory.at("bfloat16").devices
    assert (device.memory_bytes, device.reserve_bytes) == (1000 * MIB, 11 * MIB)
    assert (device.bandwidth_bytes_per_s, device.flops_per_s) == (12_345 * 10**6, 98 * 10**9)
    assert detected.left_out == ("GPUs: no GPU can be detected: NVML says no: do this",)
    assert "# Some CPU, 3 cores for this process" in detected.text
