"""Reads the GPUs of this machine from NVML into plain records: the only module that knows nvidia-ml-py.

A feature that a GPU or its driver lacks is None, never a default; any other failure is a DetectionError that names the
call. Sizes are in bytes, clocks in MHz, bus widths in bits, as NVML has them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pynvml

from planner.errors import DetectionError, NoGpuError
from plans.format import quote

_MISSING_FEATURE = {
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_NOT_FOUND,
    # A link or a slice beyond those that the device has.
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
}

_GENERATIONS = {1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 5}
"""NVLink's generation by ``nvmlNvlinkVersion_t`` (2.2 is the third value, 3.1 the fifth)."""

_NEWEST = {6: 1, 7: 2, 8: 3, 9: 4, 10: 5}
"""The newest NVLink generation by the major number of the compute capability: some drivers say 5 of an H100."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A MIG device."""

    name: str
    uuid: str
    memory_bytes: int
    compute_slices: int
    """Number of compute slices: sevenths of the GPU, fourths of an A30."""
    gpu_instance: int
    """Number of the GPU instance, whose memory and bandwidth its compute instances share; each is a MIG device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A physical GPU; with ``mig`` and no slices no program can use it."""

    name: str
    uuid: str
    pci: str
    total_bytes: int | None
    reserved_bytes: int | None
    """Part of ``total_bytes`` that the driver keeps."""
    bus_bits: int | None
    memory_mhz: int | None
    cores: int | None
    core_mhz: int | None
    pcie_generation: int | None
    pcie_width: int | None
    mig: bool
    slices: tuple[Slice, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NvLink:
    """The NVLinks of two GPUs."""

    count: int
    generation: int | None
    """None where it is newer than this program."""
    link_bytes_per_s: int | None
    """Signalling rate of one link in one direction."""
    switched: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """GPUs in the order of NVML, which is that of their PCI addresses; pairs by their indices, the lower first."""

    driver: str
    gpus: tuple[Gpu, ...]
    nvlinks: Mapping[tuple[int, int], NvLink]
    ancestors: Mapping[tuple[int, int], int | None]
    """``nvmlGpuTopologyLevel_t`` of a pair: the highest level that its PCIe path crosses."""
    peers: Mapping[tuple[int, int], bool | None]
    """True where the driver lets a pair copy to each other directly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Port:
    """One end of an active NVLink."""

    remote_pci: str
    remote_type: int | None
    version: int | None


def read_machine(nvml: Any = pynvml) -> Machine:
    """Return the GPUs that NVML reports; ``nvml`` is nvidia-ml-py or a recording of it.

    Raise NoGpuError without a driver or a GPU, DetectionError where a GPU cannot be read.
    """
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoGpuError(
            f"no GPU can be detected: NVML says {error}: install the NVIDIA driver, or write the inventory by hand"
        ) from error
    try:
        return _read(_Calls(nvml))
    finally:
        nvml.nvmlShutdown()


class _Calls:
    """Calls of NVML by name; a missing feature is told apart from other errors."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml

    def need(self, name: str, *arguments: Any) -> Any:
        """Return the result of a call, bytes as text; raise DetectionError for any failure, and text with control
        characters or not of UTF-8."""
        try:
            value = getattr(self.nvml, name)(*arguments)
        except pynvml.NVMLError as error:
            raise DetectionError(f"{name}: NVML says {error}: this GPU cannot be detected") from error
        except UnicodeDecodeError as error:  # nvidia-ml-py decodes some answers itself
            raise _no_text(name, error.object) from error
        return _text(name, value) if isinstance(value, str | bytes) else value

    def get(self, name: str, *arguments: Any) -> Any:
        """Return the result of a call, None where the device or the driver lacks the feature."""
        try:
            return self.need(name, *arguments)
        except DetectionError as error:
            if getattr(error.__cause__, "value", None) in _MISSING_FEATURE:
                return None
            raise


def _text(name: str, value: str | bytes) -> str:
    """Return what a call says as text that can stand in a line of an inventory; raise DetectionError."""
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise _no_text(name, value) from error
    if not text.isprintable():
        raise _no_text(name, text)
    return text


def _no_text(name: str, value: str | bytes) -> DetectionError:
    return DetectionError(
        f"{name}: found {quote(value)}, expected printable UTF-8: this GPU cannot be detected: write the inventory by "
        "hand"
    )


def _read(nvml: _Calls) -> Machine:
    count = nvml.need("nvmlDeviceGetCount")
    if count == 0:
        raise NoGpuError("no GPU can be detected: NVML counts 0 devices: write the inventory by hand")
    handles = [nvml.need("nvmlDeviceGetHandleByIndex", index) for index in range(count)]
    gpus = tuple(_gpu(nvml, handle) for handle in handles)
    pairs = list(combinations(range(count), 2))
    return Machine(
        driver=nvml.need("nvmlSystemGetDriverVersion"),
        gpus=gpus,
        nvlinks=_nvlinks(nvml, handles, gpus),
        ancestors={(a, b): nvml.get("nvmlDeviceGetTopologyCommonAncestor", handles[a], handles[b]) for a, b in pairs},
        peers={(a, b): _peer(nvml, handles[a], handles[b]) for a, b in pairs},
    )


def _gpu(nvml: _Calls, handle: Any) -> Gpu:
    detailed = nvml.get("nvmlDeviceGetMemoryInfo", handle, pynvml.nvmlMemory_v2)
    memory = detailed or nvml.get("nvmlDeviceGetMemoryInfo", handle)
    mode = nvml.get("nvmlDeviceGetMigMode", handle)
    mig = mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    return Gpu(
        name=nvml.need("nvmlDeviceGetName", handle),
        uuid=nvml.need("nvmlDeviceGetUUID", handle),
        pci=_pci(nvml.need("nvmlDeviceGetPciInfo", handle)),
        total_bytes=memory.total if memory else None,
        reserved_bytes=detailed.reserved if detailed else None,
        bus_bits=nvml.get("nvmlDeviceGetMemoryBusWidth", handle),
        memory_mhz=nvml.get("nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_MEM),
        cores=nvml.get("nvmlDeviceGetNumGpuCores", handle),
        core_mhz=nvml.get("nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_SM),
        pcie_generation=nvml.get("nvmlDeviceGetMaxPcieLinkGeneration", handle),
        pcie_width=nvml.get("nvmlDeviceGetMaxPcieLinkWidth", handle),
        mig=mig,
        slices=tuple(_slices(nvml, handle)) if mig else (),
    )


def _pci(info: Any) -> str:
    return _text("nvmlDeviceGetPciInfo", info.busId).upper()


def _slices(nvml: _Calls, handle: Any) -> Iterator[Slice]:
    for index in range(nvml.need("nvmlDeviceGetMaxMigDeviceCount", handle)):
        # Slice numbers without a slice are reported as not found.
        part = nvml.get("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        if part is not None:
            yield Slice(
                name=nvml.need("nvmlDeviceGetName", part),
                uuid=nvml.need("nvmlDeviceGetUUID", part),
                memory_bytes=nvml.need("nvmlDeviceGetMemoryInfo", part).total,
                compute_slices=nvml.need("nvmlDeviceGetAttributes_v2", part).computeInstanceSliceCount,
                gpu_instance=nvml.need("nvmlDeviceGetGpuInstanceId", part),
            )


def _peer(nvml: _Calls, a: Any, b: Any) -> bool | None:
    # The library's constant for reading is a tuple by a slip; it is the first of the enumeration.
    status = nvml.get("nvmlDeviceGetP2PStatus", a, b, 0)
    return None if status is None else status == pynvml.NVML_P2P_STATUS_OK


# NVLink


def _nvlinks(nvml: _Calls, handles: list[Any], gpus: tuple[Gpu, ...]) -> dict[tuple[int, int], NvLink]:
    """Return the NVLinks of every pair: those straight to each other, else those that both have to a switch."""
    ports = [tuple(_ports(nvml, handle)) for handle in handles]
    addresses = {gpu.pci for gpu in gpus}
    links = {}
    for a, b in combinations(range(len(gpus)), 2):
        straight = [port for port in ports[a] if port.remote_pci == gpus[b].pci]
        switched = [[port for port in ports[end] if _is_switch(port, addresses)] for end in (a, b)]
        chosen = straight or min(switched, key=len)
        if chosen:
            links[a, b] = NvLink(
                count=len(chosen),
                generation=_generation(nvml, handles[a], chosen),
                link_bytes_per_s=_link_rate(nvml, handles[a]),
                switched=not straight,
            )
    return links


def _ports(nvml: _Calls, handle: Any) -> Iterator[_Port]:
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if nvml.get("nvmlDeviceGetNvLinkState", handle, link) != pynvml.NVML_FEATURE_ENABLED:
            continue
        remote = nvml.get("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
        yield _Port(
            remote_pci="" if remote is None else _pci(remote),
            remote_type=nvml.get("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link),
            version=nvml.get("nvmlDeviceGetNvLinkVersion", handle, link),
        )


def _is_switch(port: _Port, gpus: set[str]) -> bool:
    if port.remote_type is None:
        # Drivers before 470 do not report the type; there a remote end that is no GPU of this machine is a switch.
        return port.remote_pci != "" and port.remote_pci not in gpus
    return bool(port.remote_type == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH)


def _generation(nvml: _Calls, handle: Any, ports: list[_Port]) -> int | None:
    reported = {_GENERATIONS.get(port.version or 0) for port in ports}
    capability = nvml.get("nvmlDeviceGetCudaComputeCapability", handle)
    newest = None if capability is None else _NEWEST.get(capability[0])
    known = [generation for generation in (*reported, newest) if generation is not None]
    return min(known) if None not in reported else None


def _link_rate(nvml: _Calls, handle: Any) -> int | None:
    values = nvml.get("nvmlDeviceGetFieldValues", handle, [pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON])
    if values is None or values[0].nvmlReturn != pynvml.NVML_SUCCESS or values[0].value.uiVal == 0:
        return None
    return int(values[0].value.uiVal) * 10**6
