"""Recorded answers of NVML on several machines, as nvidia-ml-py returns them: structures, errors, old drivers' bytes.

The files under ``nvml`` are compiled from public logs of nvidia-smi -q, topo -m, nvlink -s and torch's properties.
"""

import ctypes
import json
from pathlib import Path
from typing import Any

import pynvml

DIRECTORY = Path(__file__).with_name("nvml")

STRUCTURES = {
    "nvmlDeviceGetPciInfo": pynvml.nvmlPciInfo_t,
    "nvmlDeviceGetNvLinkRemotePciInfo": pynvml.nvmlPciInfo_t,
    "nvmlDeviceGetMemoryInfo": pynvml.c_nvmlMemory_t,
    "nvmlDeviceGetMemoryInfo_v2": pynvml.c_nvmlMemory_v2_t,
    "nvmlDeviceGetAttributes_v2": pynvml.c_nvmlDeviceAttributes,
}


class Recording:
    """Stand-in for nvidia-ml-py; a device handle is the device's record. ``open`` counts inits without shutdown."""

    def __init__(self, name: str, **changes: Any) -> None:
        self.data: dict[str, Any] = json.loads((DIRECTORY / f"{name}.json").read_text()) | changes
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> Any:
        return answer(self.data, "nvmlSystemGetDriverVersion")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.data["devices"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self.data["devices"][index]

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
        return answer(handle, "nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo")

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> Any:
        return answer(handle["nvmlDeviceGetMaxClockInfo"], str(kind))

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:
        if str(index) not in handle["migs"]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle["migs"][str(index)]

    def nvmlDeviceGetNvLinkState(self, handle: Any, link: int) -> int:
        if not handle["links"]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if link >= len(handle["links"]):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return pynvml.NVML_FEATURE_ENABLED

    def nvmlDeviceGetNvLinkVersion(self, handle: Any, link: int) -> Any:
        return answer(handle["links"][link], "nvmlDeviceGetNvLinkVersion")

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: Any, link: int) -> Any:
        return answer(handle["links"][link], "nvmlDeviceGetNvLinkRemotePciInfo")

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: Any, link: int) -> Any:
        return answer(handle["links"][link], "nvmlDeviceGetNvLinkRemoteDeviceType")

    def nvmlDeviceGetFieldValues(self, handle: Any, fields: list[int]) -> Any:
        values = (pynvml.c_nvmlFieldValue_t * len(fields))()
        speed = handle["nvlink_speed_mbps"]
        values[0].nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED if speed is None else pynvml.NVML_SUCCESS
        values[0].value.uiVal = speed or 0
        return values

    def nvmlDeviceGetTopologyCommonAncestor(self, a: Any, b: Any) -> Any:
        return answer(self.data["nvmlDeviceGetTopologyCommonAncestor"], self._pair(a, b))

    def nvmlDeviceGetP2PStatus(self, a: Any, b: Any, index: int) -> Any:
        ctypes.c_uint(index)  # the library's own constant is a tuple, which the real call refuses
        return answer(self.data["nvmlDeviceGetP2PStatus"], self._pair(a, b))

    def _pair(self, a: Any, b: Any) -> str:
        return "-".join(str([device is handle for device in self.data["devices"]].index(True)) for handle in (a, b))

    def __getattr__(self, name: str) -> Any:
        """Answer every other function, which takes only a device handle."""
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)
        return lambda handle: answer(handle, name)


def answer(record: Any, name: str) -> Any:
    """Return a recorded answer as nvidia-ml-py does."""
    value = record[name]
    if isinstance(value, dict) and set(value) == {"error"}:
        raise pynvml.NVMLError(value["error"])
    if isinstance(value, dict) and set(value) == {"bytes"}:
        return value["bytes"].encode()
    if name in STRUCTURES:
        structure = STRUCTURES[name]()
        for field, content in value.items():
            setattr(structure, field, content)
        return structure
    return tuple(value) if name == "nvmlDeviceGetCudaComputeCapability" else value
