"""The physical device of a rank: whether it is the plan's, checked before a weight is read, and how full it is."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from plans.schema import Device, Plan
from runtime.comm.groups import is_device_error
from runtime.errors import MachineError
from runtime.request import MemoryReading

CPU_INFO = Path("/proc/cpuinfo")


def torch_device(device: Device) -> torch.device:
    """Return the torch device of a plan's device."""
    return torch.device("cpu") if device.kind == "cpu" else torch.device("cuda", device.ordinal)


def threads_per_rank(plan: Plan, device: Device) -> int:
    """Return the CPU threads of one rank: the cores that this process may use, divided by the host's devices."""
    ranks = sum(other.host == device.host for other in plan.devices)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // ranks)


def device_name(device: Device) -> str:
    """Return the physical device's name as its driver reports it, of a CPU the processor's model."""
    if device.kind != "cpu":
        return f"cuda:{device.ordinal} {torch.cuda.get_device_properties(device.ordinal).name}"
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else "CPU"


def read_memory(device: torch.device) -> MemoryReading:
    """Return the memory of a device now."""
    process_bytes = psutil.Process().memory_info().rss
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return MemoryReading(total_bytes=total, free_bytes=free, process_bytes=process_bytes)
    memory = psutil.virtual_memory()
    return MemoryReading(total_bytes=memory.total, free_bytes=memory.available, process_bytes=process_bytes)


def is_named(name: str, expected: str) -> bool:
    """Return True where a driver's name has ``expected`` in whole words (an A100 is no A10, an L40S no L40)."""
    return not expected or re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", name) is not None


@contextmanager
def device_errors(device: Device) -> Iterator[None]:
    """Raise an error of an accelerator within this context as a MachineError that names the device."""
    try:
        yield
    except RuntimeError as error:
        if not is_device_error(error):
            raise
        raise MachineError(f"device {device.id}: {str(error).partition(chr(10))[0]}") from error


def check_machine(plan: Plan, device: Device) -> None:
    """Raise MachineError where the physical device is missing, of another type, or smaller than planned.

    Memory is compared without tolerance: the plan states it as the device reports it.
    """
    if device.kind == "cpu":
        _check_host(plan, device)
    else:
        _check_cuda(plan, device)


def _check_host(plan: Plan, device: Device) -> None:
    """Raise MachineError where the host has less memory than is planned for its CPU devices together.

    The memory that each of them claims is not compared: they are parts of one machine.
    """
    cpus = {other.id for other in plan.devices if other.kind == "cpu" and other.host == device.host}
    planned = sum(entry.planned_bytes for entry in plan.memory if entry.device in cpus)
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if present < planned:
        raise MachineError(
            f"device {device.id}: host {device.host} has {present} bytes of memory, its CPU devices are planned "
            f"with {planned}: build a plan for this machine"
        )


def _check_cuda(plan: Plan, device: Device) -> None:
    where = f"device {device.id}: cuda:{device.ordinal}"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.ordinal >= count:
        raise MachineError(
            f"{where} is not there: this machine has {count} CUDA devices: build a plan for this machine"
        )
    properties = torch.cuda.get_device_properties(device.ordinal)
    if not is_named(properties.name, device.reported_name):
        raise MachineError(
            f"{where} is {properties.name!r}, expected a name with {device.reported_name!r} (type {device.type})"
        )
    needed = _physical_bytes(plan, device)
    if properties.total_memory < needed:
        raise MachineError(f"{where} has {properties.total_memory} bytes of memory, the plan needs {needed}")


def _physical_bytes(plan: Plan, device: Device) -> int:
    """Return the memory that the accelerator must have: the sum over the plan's devices that share it."""
    return sum(
        other.memory_bytes
        for other in plan.devices
        if (other.kind, other.host, other.ordinal) == (device.kind, device.host, device.ordinal)
    )
