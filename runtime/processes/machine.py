"""Is this machine the plan's? Answered before a weight is read."""

import os
import re
import sys

import torch

from plans.schema import Device, Plan
from runtime.errors import MachineError


def torch_device(device: Device) -> torch.device:
    """The device that torch calls this one."""
    return torch.device("cpu") if device.kind == "cpu" else torch.device("cuda", device.ordinal)


def threads_per_rank(plan: Plan, device: Device) -> int:
    """CPU threads of one rank: the cores that this process may use, dealt out over the plan's devices of the host."""
    ranks = sum(other.host == device.host for other in plan.devices)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // ranks)


def is_named(found: str, expected: str) -> bool:
    """Whether a driver's name has ``expected`` in whole words (an A100 is no A10, an L40S no L40)."""
    return not expected or re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", found) is not None


def check_machine(plan: Plan, device: Device) -> None:
    """Raise MachineError where the physical device is missing, of another type, or smaller than planned.

    Memory is compared without tolerance: the plan states it as the device reports it.
    """
    if device.kind == "cpu":
        _check_host(plan, device)
    else:
        _check_cuda(plan, device)


def _check_host(plan: Plan, device: Device) -> None:
    """The planned bytes of all CPU devices of this host must exist, whatever memory each of them claims."""
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
    found = torch.cuda.get_device_properties(device.ordinal)
    if not is_named(found.name, device.reported_name):
        raise MachineError(
            f"{where} is {found.name!r}, expected a name with {device.reported_name!r} (type {device.type})"
        )
    needed = _physical_bytes(plan, device)
    if found.total_memory < needed:
        raise MachineError(f"{where} has {found.total_memory} bytes of memory, the plan needs {needed}")


def _physical_bytes(plan: Plan, device: Device) -> int:
    """What the accelerator must have: the memory of the plan's device, or the sum of those that share it."""
    return sum(
        other.memory_bytes
        for other in plan.devices
        if (other.kind, other.host, other.ordinal) == (device.kind, device.host, device.ordinal)
    )
