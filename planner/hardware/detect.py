"""Describes the GPUs that NVML reports as the text of an ``inventory.yaml``.

Figures that NVML reports are written as they are; figures that follow from them are computed, and a comment says from
which. A device with a figure that neither gives stays a comment that says what is missing. UUIDs are fields, so that a
plan runs on these very devices; without that field it holds for any machine with such devices. PCI addresses are
comments.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from planner.errors import DetectionError, InventoryError
from planner.hardware import units
from planner.hardware.catalog import CPU, DeviceType, catalog
from planner.hardware.inventory import parse_inventory
from planner.hardware.nvml import Gpu, Machine, NvLink, Slice
from planner.hardware.records import HardwareInventory
from plans.schema import DType
from plans.strict_yaml import load_yaml

_MAKERS = re.compile(r"(?:(?:NVIDIA|Tesla|GeForce) )*")

_SAME_MEMORY = 0.08
"""Relative difference of memory below which a device is of a type. Types that share a name differ by more; one type
under two drivers, or with and without ECC, differs by less."""

_FULL_LINKS = {1: (4, 20), 2: (6, 25), 3: (12, 25), 4: (18, 25), 5: (18, 50)}
"""(links, GB/s per link and direction) of a GPU with all its NVLinks, by generation, as in the catalogue."""

_ANCESTORS = {0: "one board", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""nvidia-smi's names of what a PCIe path crosses, from one bridge to the link of two CPU sockets."""

_MEMORY_PARTS = 8
"""MIG divides memory and its bandwidth into eighths (an A30 into fourths)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detected:
    """A detected inventory: as text, as records, and the devices that it leaves out."""

    text: str
    inventory: HardwareInventory
    left_out: tuple[str, ...]
    """Devices that are comments in the text or missing, with the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """One device: its fields as text, or what is missing of them."""

    id: str
    gpu: int
    fields: Mapping[str, str]
    notes: tuple[str, ...]
    missing: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wire:
    """Connection of two GPUs, as the fields of a link and as a comment."""

    fields: tuple[tuple[str, str], ...]
    note: str


def detect(machine: Machine, host: str, dtype: DType) -> Detected:
    """Return the inventory of one host; ``dtype`` picks the rate of MIG slices, whose file entries give only one.

    Raise DetectionError where no device of the machine can be described.
    """
    entries = [entry for index, gpu in enumerate(machine.gpus) for entry in _entries(index, gpu, dtype)]
    left_out = tuple(f"{entry.id} ({entry.notes[0]}): {entry.missing}" for entry in entries if entry.missing)
    usable = [entry for entry in entries if not entry.missing]
    if not usable:
        raise DetectionError(f"no GPU can be described: {'; '.join(left_out)}: write the inventory by hand")
    lines = [
        f"# Read from NVML, driver {machine.driver}. Ordinals are in the order of PCI addresses, as are those of",
        "# programs with CUDA_DEVICE_ORDER=PCI_BUS_ID and without CUDA_VISIBLE_DEVICES.",
        "hosts:",
        f'  - name: "{host}"',
        *_link_lines(machine, usable),
        "    devices:",
        *(line for entry in entries for line in _device_lines(entry)),
    ]
    text = "\n".join(lines) + "\n"
    try:
        inventory = parse_inventory(load_yaml(text, "detected"), "detected")
    except InventoryError as error:
        raise DetectionError(f"what NVML reports is no inventory: {error}: write the inventory by hand") from error
    return Detected(text=text, inventory=inventory, left_out=left_out)


# Devices


def _entries(index: int, gpu: Gpu, dtype: DType) -> Iterator[_Entry]:
    width = "" if gpu.pcie_generation is None else f", PCIe {gpu.pcie_generation}.0 x{gpu.pcie_width}"
    identity = f"{gpu.name}, {gpu.uuid}, {gpu.pci}{width}"
    if gpu.mig:
        if not gpu.slices:
            why = "MIG is on and no slice is made, so that no program can use it"
            yield _Entry(id=f"gpu{index}", gpu=index, fields={}, notes=(identity,), missing=why)
        shared = Counter(part.gpu_instance for part in gpu.slices)
        for position, part in enumerate(gpu.slices):
            device_id = f"gpu{index}-mig{position}"
            if shared[part.gpu_instance] == 1:
                yield _slice_entry(device_id, index, gpu, part, dtype)
            else:
                yield _shared_entry(device_id, index, gpu, part, shared[part.gpu_instance])
        return
    yield _gpu_entry(f"gpu{index}", index, gpu, identity)


def _gpu_entry(device_id: str, index: int, gpu: Gpu, identity: str) -> _Entry:
    kind, doubt = _type_of(gpu)
    notes = [identity]
    if kind is None:
        fields, missing = _own_figures(gpu, doubt, notes)
    else:
        fields, missing = {"type": kind.name} | _memory_of(gpu, kind, notes), ""
    return _Entry(
        id=device_id,
        gpu=index,
        fields=fields | {"ordinal": str(index), "uuid": _quoted(gpu.uuid)},
        notes=tuple(notes),
        missing=missing,
    )


def _type_of(gpu: Gpu) -> tuple[DeviceType | None, str]:
    """Return the row of the catalogue by name, and by memory where types share it; else the reason for none."""
    name = _MAKERS.sub("", gpu.name, count=1)
    named = [row for row in catalog().devices.values() if name in row.names]
    if not named:
        return None, "not in the catalogue"
    if len(named) == 1:
        return named[0], ""
    types = ", ".join(row.name for row in named)
    usable = _usable_bytes(gpu)
    if usable is None:
        return None, f"one of {types}, which memory tells apart, and NVML does not report it"
    near = [row for row in named if abs(usable / (row.memory_bytes or 1) - 1) < _SAME_MEMORY]
    return (near[0], "") if len(near) == 1 else (None, f"of other memory than {types}")


def _usable_bytes(gpu: Gpu) -> int | None:
    """Return the bytes that a program can allocate: NVML's total less the driver's own share."""
    return None if gpu.total_bytes is None else gpu.total_bytes - (gpu.reserved_bytes or 0)


def _memory_of(gpu: Gpu, kind: DeviceType, notes: list[str]) -> dict[str, str]:
    usable = _usable_bytes(gpu)
    if usable is None:
        notes.append("NVML does not report its memory: the catalogue's figure")
        return {}
    if gpu.reserved_bytes is None and abs(usable / (kind.memory_bytes or 1) - 1) < _SAME_MEMORY:
        notes.append("this driver does not report what it reserves of the memory: the catalogue's figure")
        return {}
    return {"memory": units.mebibytes(usable)}


def _own_figures(gpu: Gpu, doubt: str, notes: list[str]) -> tuple[dict[str, str], str]:
    """Compute the figures of a GPU without a row: 2 transfers per bus clock, 2 operations per core clock and core."""
    usable, fields = _usable_bytes(gpu), {"type": _slug(gpu.name)}
    absent = [
        figure
        for figure, values in (
            ("memory", [usable]),
            ("bandwidth (bus width and clock)", [gpu.bus_bits, gpu.memory_mhz]),
            ("flops (cores and clock)", [gpu.cores, gpu.core_mhz]),
        )
        if not all(values)
    ]
    if absent:
        return fields, f"{doubt}; NVML does not report {', '.join(absent)}: give them"
    assert usable and gpu.bus_bits and gpu.memory_mhz and gpu.cores and gpu.core_mhz  # noqa: PT018
    rate = 2 * gpu.cores * gpu.core_mhz * 10**6
    notes.append(f"{doubt}: bandwidth is {gpu.bus_bits} bits, twice at {gpu.memory_mhz} MHz;")
    notes.append(
        f"flops are float32's ({gpu.cores} cores at {gpu.core_mhz} MHz): NVML does not report the tensor cores' rate"
    )
    if gpu.reserved_bytes is None:
        notes.append("this driver does not report what it reserves of the memory: programs have less")
    fields |= {
        "memory": units.mebibytes(usable),
        "bandwidth": units.megabytes_per_s(gpu.bus_bits // 8 * 2 * gpu.memory_mhz * 10**6),
        "flops": units.gigaflops(rate),
        "reported_name": _quoted(_MAKERS.sub("", gpu.name, count=1)),
    }
    return fields, ""


def _shared_entry(device_id: str, index: int, gpu: Gpu, part: Slice, count: int) -> _Entry:
    """Describe a compute instance that has no memory of its own, and so is no device of a plan."""
    why = (
        f"one of {count} compute instances of GPU instance {part.gpu_instance}, which share its memory and bandwidth: "
        f"give it one compute instance, with `nvidia-smi mig -i {index} -gi {part.gpu_instance} -dci` and then `-cci` "
        "in the place of `-dci`, and detect again"
    )
    return _Entry(id=device_id, gpu=index, fields={}, notes=(_slice_note(gpu, part),), missing=why)


def _slice_note(gpu: Gpu, part: Slice) -> str:
    return f"{part.name}, {part.uuid} of {gpu.name}, {gpu.uuid}, {gpu.pci}"


def _slice_entry(device_id: str, index: int, gpu: Gpu, part: Slice, dtype: DType) -> _Entry:
    """Describe a MIG device: its own memory, bandwidth in proportion to it, rate in proportion to compute slices."""
    kind, doubt = _type_of(gpu)
    notes = (_slice_note(gpu, part),)
    if kind is None or gpu.total_bytes is None or kind.bandwidth_bytes_per_s is None:
        why = doubt or "NVML does not report the memory of the whole GPU"
        return _Entry(id=device_id, gpu=index, fields={}, notes=notes, missing=f"{why}: give its figures")
    parts = max(1, round(_MEMORY_PARTS * part.memory_bytes / gpu.total_bytes))
    sevenths = 4 if kind.name == "a30" else 7
    profile = part.name.rpartition("MIG ")[2].replace("+", "-")
    fields = {
        "type": _slug(f"{kind.name}-{profile}"),
        "memory": units.mebibytes(part.memory_bytes),
        "bandwidth": units.megabytes_per_s(kind.bandwidth_bytes_per_s * parts // _MEMORY_PARTS),
        "flops": units.gigaflops(kind.flops_per_s[dtype] * part.compute_slices // sevenths),
        "reported_name": kind.reported_name,
        "ordinal": str(index),
        "uuid": _quoted(part.uuid),
    }
    share = f"{parts}/{_MEMORY_PARTS} of the bandwidth, {part.compute_slices}/{sevenths} of the rate at {dtype};"
    seen = "the runtime gives its process this slice alone, by its UUID"
    return _Entry(id=device_id, gpu=index, fields=fields, notes=(*notes, f"{share} {seen}"))


def _slug(name: str) -> str:
    """Return a type name for a GPU that is none of the catalogue's."""
    text = re.sub(r"[^a-z0-9._-]+", "-", _MAKERS.sub("", name, count=1).lower()).strip("-._")[:56]
    return f"{text}-unlisted" if text in catalog().devices or text in ("", CPU) else text


def _quoted(text: str) -> str:
    """Return printable text in double quotes, as YAML and JSON have them."""
    return json.dumps(text, ensure_ascii=False)


def _device_lines(entry: _Entry) -> list[str]:
    lines = [f"      # {note}" for note in entry.notes]
    written = ", ".join(f"{name}: {value}" for name, value in ({"id": entry.id} | dict(entry.fields)).items())
    if entry.missing:
        return [*lines, f"      # left out: {entry.missing}", f"      # - {{{written}}}"]
    return [*lines, f"      - {{{written}}}"]


# Links


def _link_lines(machine: Machine, entries: list[_Entry]) -> list[str]:
    """Write the link that most pairs have as the host's, and list the others."""
    wires = {(a.id, b.id): _wire(machine, a.gpu, b.gpu) for a, b in combinations(entries, 2)}
    if not wires:
        return []
    # Of equally common links the one that sorts first, so that the text depends on the machine alone.
    common = min(Counter(wire.fields for wire in wires.values()).items(), key=lambda item: (-item[1], item[0]))[0]
    notes: dict[str, list[str]] = {}
    for (a, b), wire in wires.items():
        notes.setdefault(wire.note, []).append(f"{a} + {b}")
    lines = [f"    # {note}: {'all' if len(notes) == 1 else ', '.join(pairs)}" for note, pairs in notes.items()]
    base = [f"{name}: {value}" for name, value in common]
    if any(entry.id != f"gpu{entry.gpu}" for entry in entries):
        lines.append("    # NCCL does not tell the slices of one GPU apart")
        base.append("transport: gloo")
    others = [(pair, wire.fields) for pair, wire in wires.items() if wire.fields != common]
    if not others:
        return [*lines, f"    links: {{{', '.join(base)}}}"]
    return [
        *lines,
        "    links:",
        *(f"      {field}" for field in base),
        "      pairs:",
        *(
            f"        - {{between: [{a}, {b}], {', '.join(f'{name}: {value}' for name, value in fields)}}}"
            for (a, b), fields in others
        ),
    ]


def _wire(machine: Machine, a: int, b: int) -> _Wire:
    """Describe the connection of two GPUs: NVLink where there is one and MIG is off, else PCIe."""
    if a == b:
        return _pcie(machine, a, a, "slices of one GPU, through the host")
    link = machine.nvlinks.get((a, b))
    if link is None or machine.gpus[a].mig or machine.gpus[b].mig:
        level = machine.ancestors[a, b]
        crossed = "PCIe" if level is None else f"PCIe, {_ANCESTORS.get(level, f'level {level}')}"
        copies = ", no direct copies" if machine.peers[a, b] is False else ""
        return _pcie(machine, a, b, f"{crossed}{copies}")
    return _nvlink(link, machine, a, b)


def _nvlink(link: NvLink, machine: Machine, a: int, b: int) -> _Wire:
    through = " to a switch" if link.switched else ""
    if link.generation is None:
        note = f"{link.count} NVLinks{through} of a generation that the catalogue does not have, so PCIe"
        return _pcie(machine, a, b, note)
    name = f"nvlink{link.generation}"
    count, rate = _FULL_LINKS[link.generation]
    signalled = rate * 10**9 if link.link_bytes_per_s is None else min(link.link_bytes_per_s, rate * 10**9)
    full = catalog().links[name].bandwidth_bytes_per_s
    bandwidth = full * link.count * signalled // (count * rate * 10**9)
    fields = [("class", name)]
    if bandwidth != full:
        fields.append(("bandwidth", units.megabytes_per_s(bandwidth)))
    return _Wire(fields=tuple(fields), note=f"NV{link.count}{through}")


def _pcie(machine: Machine, a: int, b: int, note: str) -> _Wire:
    """Describe the slower of two PCIe slots by NVML's greatest generation and width, since idle links slow down."""
    slots = [(gpu.pcie_generation, gpu.pcie_width) for gpu in (machine.gpus[a], machine.gpus[b])]
    rates = []
    for generation, width in slots:
        row = catalog().links.get(f"pcie{generation}")
        if row is None or not width:
            return _Wire(fields=(("class", "pcie"),), note=f"{note}, NVML does not report the PCIe slot")
        rates.append((row.bandwidth_bytes_per_s * min(width, 16) // 16, row))
    bandwidth, row = min(rates, key=lambda item: item[0])
    fields = [("class", row.link_class)]
    if bandwidth != row.bandwidth_bytes_per_s:
        fields.append(("bandwidth", units.megabytes_per_s(bandwidth)))
    return _Wire(fields=tuple(fields), note=note)
