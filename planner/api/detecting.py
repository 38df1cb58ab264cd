"""Describes this machine as an inventory."""

import socket

from planner.errors import NoGpuError
from planner.hardware.detect import Detected
from planner.hardware.detect import detect as detect_devices
from planner.hardware.detect_cpu import cpu_identity, describe_cpu, measure_cpu
from planner.hardware.inventory import HOST_NAME
from planner.hardware.nvml import read_machine
from plans.schema import DType

DEFAULT_HOST = "box0"
"""Name of the detected host where the machine's own name cannot stand in an inventory."""


def machine_identity() -> str:
    """Return a text that is equal where :func:`detect` describes the same devices; measures nothing.

    Raise DetectionError where a GPU cannot be read.
    """
    try:
        return repr(read_machine())
    except NoGpuError:
        return repr(cpu_identity())


def detect(dtype: DType = "bfloat16") -> Detected:
    """Return the inventory of this machine: the GPUs that NVML reports or, where there is none, the CPU as measured.

    ``dtype`` picks the rate of MIG slices. Measuring takes a second or two. Raise DetectionError where a GPU cannot be
    read, or none can be described.
    """
    name = socket.gethostname().partition(".")[0]
    host = name if HOST_NAME.fullmatch(name) else DEFAULT_HOST
    try:
        machine = read_machine()
    except NoGpuError as error:
        return describe_cpu(measure_cpu(), host, str(error))
    return detect_devices(machine, host, dtype)
