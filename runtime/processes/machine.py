"""The physical device of a rank: whether it is the plan's, checked before a weight is read, and how full it is."""

import os
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from plans.check_inputs import is_slice
from plans.format import quote
from plans.schema import Device, Plan
from plans.usable import EXPECTED_CAPABILITY, capability_text, runs_kernels
from runtime.comm.groups import is_device_error
from runtime.errors import MachineError
from runtime.request import MemoryReading

CPU_INFO = Path("/proc/cpuinfo")
GPUS = "EAGLEPLAN_GPUS"
"""Variable with the GPUs of this host that take the place of the plan's, as nvidia-smi counts them: the first is that
of ordinal 0. Replicas of a fleet run one plan on several sets of GPUs."""
GPU_DIGITS = 4
"""Digits of the largest number in the variable, for far more GPUs than a host has."""
_GPU_NUMBER = re.compile(rf"0|[1-9][0-9]{{0,{GPU_DIGITS - 1}}}")
VISIBLE, ORDER, PCI_ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
"""Variables that CUDA reads once: which GPUs a process sees, and in which order; the order of their PCI addresses."""


def torch_device(device: Device) -> torch.device:
    """Return the torch device of a plan's device in this process; raise MachineError where it is hidden."""
    if device.kind == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", visible_index(device, os.environ))


def show_device(device: Device, environment: MutableMapping[str, str], *, initialised: bool) -> None:
    """Set the environment of CUDA so that this process can use a plan's device; raise MachineError where it cannot.

    A plan counts a host's GPUs as nvidia-smi lists them, by PCI address; CUDA would put the fastest first. A MIG slice
    is visible only by its UUID, and alone. ``initialised``: CUDA has read the environment already.
    """
    if device.kind == "cpu":
        return
    order, visible = environment.get(ORDER), environment.get(VISIBLE)
    if order not in (None, PCI_ORDER) and visible is not None and any(name.isdecimal() for name in _names(visible)):
        raise MachineError(
            f"device {device.id}: {VISIBLE} is {visible!r} and {ORDER} is {order!r}: a plan counts GPUs by PCI "
            f"address, as nvidia-smi does: set {ORDER}={PCI_ORDER}, or name the GPUs by UUID, or unset both"
        )
    if initialised:
        if is_slice(device.uuid) and visible is None:
            raise MachineError(
                f"device {device.id}: CUDA is in use in this program already, and {VISIBLE} is not set: set "
                f"{VISIBLE}={device.uuid} before, or open the engine first"
            )
        if order != PCI_ORDER and device.uuid is None and torch.cuda.device_count() > 1:
            raise MachineError(
                f"device {device.id}: CUDA is in use in this program already, and counted its GPUs without {ORDER}: "
                f"set {ORDER}={PCI_ORDER} before, or open the engine first"
            )
        return
    environment[ORDER] = PCI_ORDER
    if is_slice(device.uuid) and device.uuid is not None:
        visible_index(device, environment)
        environment[VISIBLE] = device.uuid


def visible_index(device: Device, environment: Mapping[str, str]) -> int:
    """Return the index that CUDA gives a plan's device in this process; raise MachineError where it is hidden.

    CUDA_VISIBLE_DEVICES lists ordinals, or UUIDs that may be shortened.
    """
    visible, ordinal = environment.get(VISIBLE), physical_ordinal(device, environment)
    if visible is None:
        return 0 if is_slice(device.uuid) else ordinal
    names = _names(visible)
    for index, name in enumerate(names):
        by_uuid = device.uuid is not None and name.startswith(("GPU-", "MIG-")) and device.uuid.startswith(name)
        if by_uuid or (name == str(ordinal) and not is_slice(device.uuid)):
            return index
    expected = device.uuid if is_slice(device.uuid) else " or ".join(filter(None, (str(ordinal), device.uuid)))
    raise MachineError(
        f"device {device.id}: {VISIBLE} is {visible!r}, which hides it, expected {expected} in it: add it, unset the "
        "variable, or build a plan for the GPUs that are visible"
    )


def physical_ordinal(device: Device, environment: Mapping[str, str]) -> int:
    """Return the GPU of this host that a plan's device is, as nvidia-smi counts; raise MachineError for a bad list."""
    listed = environment.get(GPUS)
    if listed is None:
        return device.ordinal
    names = _names(listed)
    if not all(_GPU_NUMBER.fullmatch(name) for name in names) or len(set(names)) != len(names):
        raise MachineError(
            f"{GPUS}: found {quote(listed)}, expected distinct numbers of GPUs from 0 to {10**GPU_DIGITS - 1}, as "
            "nvidia-smi writes them, like 2,3"
        )
    if device.uuid is not None:
        raise MachineError(f"{GPUS} is {quote(listed)}, and the plan names device {device.id} by its UUID: unset it")
    if device.ordinal >= len(names):
        raise MachineError(
            f"{GPUS}: found {quote(listed)}, expected at least {device.ordinal + 1} GPUs, as device {device.id} has "
            f"ordinal {device.ordinal}"
        )
    return int(names[device.ordinal])


def _names(visible: str) -> list[str]:
    return [name.strip() for name in visible.split(",")]


def threads_per_rank(plan: Plan, device: Device) -> int:
    """Return the CPU threads of one rank: the cores that this process may use, divided by the host's devices."""
    ranks = sum(other.host == device.host for other in plan.devices)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // ranks)


def device_name(device: Device) -> str:
    """Return the physical device's name as its driver reports it, of a CPU the processor's model."""
    if device.kind != "cpu":
        index = torch_device(device).index
        return f"cuda:{index} {torch.cuda.get_device_properties(index).name}"
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
    index = torch_device(device).index
    where = f"device {device.id}: cuda:{index}"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        visible = f" with {VISIBLE}={os.environ[VISIBLE]!r}" if VISIBLE in os.environ else ""
        raise MachineError(
            f"{where} is not there: this machine has {count} CUDA devices{visible}: build a plan for this machine"
        )
    properties = torch.cuda.get_device_properties(index)
    uuid = f"GPU-{properties.uuid}"
    if device.uuid is not None and not is_slice(device.uuid) and device.uuid != uuid:
        raise MachineError(
            f"{where} has UUID {uuid} and PCI address {_pci_address(properties)}, expected {device.uuid}: run where "
            "the plan was made for, or remove uuid from the inventory and build the plan again"
        )
    if not is_named(properties.name, device.reported_name):
        raise MachineError(
            f"{where} is {properties.name!r}, expected a name with {device.reported_name!r} (type {device.type})"
        )
    capability = 10 * properties.major + properties.minor
    if device.compute_capability is not None and device.compute_capability != capability:
        raise MachineError(
            f"{where} has compute capability {capability_text(capability)}, the plan's {device.type} has "
            f"{capability_text(device.compute_capability)}: build a plan for this machine"
        )
    if not runs_kernels(capability):
        raise MachineError(
            f"{where} has compute capability {capability_text(capability)}, expected {EXPECTED_CAPABILITY}: build a "
            "plan without it"
        )
    needed = _physical_bytes(plan, device)
    if properties.total_memory < needed:
        raise MachineError(f"{where} has {properties.total_memory} bytes of memory, the plan needs {needed}")


def _pci_address(properties: Any) -> str:
    return f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}:{properties.pci_device_id:02X}.0"


def _physical_bytes(plan: Plan, device: Device) -> int:
    """Return the memory that the accelerator must have: the sum over the plan's devices that share it.

    A MIG slice has its own.
    """
    if is_slice(device.uuid):
        return device.memory_bytes
    return sum(
        other.memory_bytes
        for other in plan.devices
        if (other.kind, other.host, other.ordinal) == (device.kind, device.host, device.ordinal)
        and not is_slice(other.uuid)
    )
