"""Measures the CPU of this machine, for an inventory of a machine without a GPU.

Memory is what psutil and the control group say; bandwidth and arithmetic are timed with numpy for about a second. The
best of several passes counts, as in STREAM: other programs only make a pass slower.
"""

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from planner.hardware import units
from planner.hardware.catalog import CPU
from planner.hardware.detect import Detected
from planner.hardware.inventory import parse_inventory
from plans.strict_yaml import load_yaml

STREAM_BYTES = 512 << 20
STREAM_THREAD_BYTES = 64 << 20
"""A pass reads this per thread and STREAM_BYTES at least: several times any cache, which is 12 MiB a core at most."""

STREAM_SHARE = 8
"""A pass reads this part of the available memory at most."""

PRODUCT_SIZE = 1536
"""Rows and columns of the matrices that are multiplied."""

PASSES = 5

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Memory limit of a container, in bytes or ``max``."""

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuFigures:
    """Measured figures of a host CPU."""

    name: str
    threads: int
    """Cores that this process may use, and threads of each measurement."""
    memory_bytes: int
    """Memory of the machine, or the limit of this process' container where that is less."""
    used_bytes: int
    """Part of it in use when it was measured; 0 under a container's limit, which says nothing about other programs."""
    stream_bytes: int
    """Bytes read by each pass of the bandwidth measurement."""
    bandwidth_bytes_per_s: int
    flops_per_s: int
    """Rate of a float32 matrix product."""


def cpu_identity() -> tuple[str, int, int]:
    """Return what tells this machine's CPU from another without a measurement: name, threads, bytes of memory."""
    total = psutil.virtual_memory().total
    return _name(), _threads(), min(total, _limit_bytes(CGROUP_LIMIT) or total)


def measure_cpu() -> CpuFigures:
    """Measure the CPU; takes about a second."""
    memory = psutil.virtual_memory()
    name, threads, total = cpu_identity()
    used = 0 if total < memory.total else min(memory.total - memory.available, total - 2 * MIB)
    stream_bytes = min(max(STREAM_BYTES, threads * STREAM_THREAD_BYTES), max(MIB, (total - used) // STREAM_SHARE))
    return CpuFigures(
        name=name,
        threads=threads,
        memory_bytes=total,
        used_bytes=used,
        stream_bytes=stream_bytes,
        bandwidth_bytes_per_s=_bandwidth(stream_bytes, threads),
        flops_per_s=_flops(),
    )


def describe_cpu(figures: CpuFigures, host: str, reason: str) -> Detected:
    """Return the inventory of a host with its CPU as the only device; ``reason``: why no GPU is listed."""
    fields = {
        "id": "cpu0",
        "type": CPU,
        "memory": units.mebibytes(figures.memory_bytes),
        "reserve": units.mebibytes(figures.used_bytes + MIB - 1),
        "bandwidth": units.megabytes_per_s(figures.bandwidth_bytes_per_s),
        "flops": units.gigaflops(figures.flops_per_s),
    }
    stream = units.mebibytes(figures.stream_bytes)
    lines = (
        "# Of this machine's CPU alone; figures are measured. No GPU is listed:",
        f"# {reason}",
        "hosts:",
        f'  - name: "{host}"',
        "    devices:",
        f"      # {figures.name}, {figures.threads} cores for this process",
        "      # memory: the machine's, or the container's limit where that is less",
        "      # reserve: memory in use when measured, which is never planned",
        f"      # bandwidth: {figures.threads} threads read {stream} together, best of {PASSES} passes;",
        "      # predicted times take four fifths of it, as of a datasheet's figure",
        f"      # flops: float32 product of two matrices of {PRODUCT_SIZE} x {PRODUCT_SIZE}, best of {PASSES} passes",
        f"      - {{{', '.join(f'{name}: {value}' for name, value in fields.items())}}}",
    )
    text = "\n".join(lines) + "\n"
    inventory = parse_inventory(load_yaml(text, "detected"), "detected")
    return Detected(text=text, inventory=inventory, left_out=(f"GPUs: {reason}",))


def _limit_bytes(file: Path) -> int | None:
    """Return the memory limit of this process' control group, None without one."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _threads() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _name() -> str:
    """Return the processor's name as the kernel has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return "".join(character for character in name if character.isprintable())


def _bandwidth(nbytes: int, threads: int) -> int:
    """Return the rate at which ``threads`` threads together read an array that no cache holds, in bytes per second."""
    words = np.ones(nbytes // 8, dtype=np.int64)
    parts = np.array_split(words, threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best_s(lambda: list(pool.map(np.max, parts)))  # numpy reduces without the interpreter's lock
    return int(words.nbytes / seconds)


def _flops() -> int:
    """Return the rate of a float32 matrix product in numpy, with the threads of its BLAS, in operations per second."""
    matrix = np.ones((PRODUCT_SIZE, PRODUCT_SIZE), dtype=np.float32)
    product = np.empty_like(matrix)
    return int(2 * PRODUCT_SIZE**3 / _best_s(lambda: np.matmul(matrix, matrix, out=product)))


def _best_s(work: Callable[[], object]) -> float:
    """Return the shortest time of ``work`` in seconds, of PASSES after one that is not counted."""
    work()
    times = []
    for _ in range(PASSES):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
