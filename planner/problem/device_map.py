"""Hugging Face device maps, in and out: which module is on which device, as accelerate and transformers write it.

The longest name that is a module or has it decides, as in accelerate. A placement has three kinds of whole pieces: the
embedding, each layer, and the head, which is the final norm with ``lm_head``; and the EAGLE head, if the map names it
as ``draft``, which is no module of theirs. A device is an id of the inventory, an index into its accelerators (into all
devices where there is none) as 1 or ``cuda:1``, or ``cpu``.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from planner.errors import InputError
from plans.codec import load_yaml, read_document
from plans.schema import Device, Draft, Inventory, Model, Pin, Plan, PlanError

DRAFT = "draft"

_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]*)")
_CUDA = re.compile(r"cuda:(0|[1-9][0-9]*)")
_WHOLE = ("", "model", "model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head", DRAFT)
_TENSORS = {f"{name}.weight": name for name in ("model.embed_tokens", "model.norm", "lm_head")}


def load_device_map(path: Path) -> Any:
    """A file in YAML or JSON as plain data, for :func:`read`."""
    try:
        data = load_yaml(read_document(path), str(path))
    except OSError as error:
        raise InputError(f"--device-map {path}: cannot read: {error.strerror}") from error
    except PlanError as error:
        raise InputError(str(error)) from error
    if data is None:
        raise InputError(f"{path}: found nothing, expected a mapping of modules to devices")
    return data


def read(data: Any, where: str, model: Model, draft: Draft | None, inventory: Inventory) -> tuple[Pin, ...]:
    """Pins of ``embed``, of each ``layers.<i>``, of ``head``, and of ``draft`` if it is named; sorted by module.

    ``where`` names the file in messages. Raise InputError for a name or a device that is none, for a module that no
    line covers, and for what is no placement of whole pieces.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: found {type(data).__name__}, expected a mapping of modules to devices")
    layers = model.num_layers
    lines = {}
    for name, value in data.items():
        module = _module(name, f"{where}: {name!r}", layers)
        lines[module] = _device(value, f"{where}: {name!r}", inventory)
    if draft is None and DRAFT in lines:
        raise InputError(f"{where}: {DRAFT!r}: there is no EAGLE head to place: take the line out, or give --draft")
    if model.tied_head and "model.embed_tokens" in lines:
        lines.setdefault("lm_head", lines["model.embed_tokens"])  # one tensor: its line covers both
    pins = {f"layers.{i}": _of(f"model.layers.{i}", lines, where) for i in range(layers)}
    pins |= {"embed": _of("model.embed_tokens", lines, where), "head": _of("lm_head", lines, where)}
    _check_norm(_of("model.norm", lines, where), pins["head"], pins[f"layers.{layers - 1}"], model, where)
    if DRAFT in lines:
        pins[DRAFT] = lines[DRAFT]
    return tuple(Pin(module=module, device=pins[module]) for module in sorted(pins))


def _module(name: str, where: str, layers: int) -> str:
    """A known module; raise InputError for others, and for a part of a layer."""
    if name in _WHOLE or name in _TENSORS:
        return _TENSORS.get(name, name)
    layer = _LAYER.match(name)
    if layer is None or name[layer.end() : layer.end() + 1] not in ("", "."):
        known = [known for known in _WHOLE if known]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {near[0]}?" if near else f", expected one of {', '.join(known)} or model.layers.0 …"
        raise InputError(f"{where}: no such module{hint}")
    if int(layer[1]) >= layers:
        raise InputError(f"{where}: no such layer, the model has model.layers.0 to model.layers.{layers - 1}")
    if layer.end() < len(name):
        raise InputError(
            f"{where}: a part of a layer, and a device map places layers whole: name {layer[0]} alone, or let a "
            "strategy other than custom divide it"
        )
    return name


def _of(module: str, lines: Mapping[str, str], where: str) -> str:
    """The device of a module: of its own line, or of the nearest module that has it."""
    name = module
    while name not in lines:
        if not name:
            raise InputError(f"{where}: {module}: no line covers it: name it, or a module that has it")
        name = name.rpartition(".")[0]
    return lines[name]


def _check_norm(norm: str, head: str, last: str, model: Model, where: str) -> None:
    """The final norm runs where ``lm_head`` does. Where that is the embedding's tensor, which accelerate keeps with the
    embedding, the norm may be listed with the last layer: the head is placed by its tensor."""
    if norm != head and not (model.tied_head and norm == last):
        raise InputError(
            f"{where}: model.norm is on {norm} and lm_head on {head}: the two are one piece, expected one device"
        )


def _device(value: Any, where: str, inventory: Inventory) -> str:
    devices = {device.id: device for device in inventory.devices}
    if isinstance(value, str) and value in devices:
        return value
    numbered = _numbered(inventory)
    index = value if type(value) is int else None
    if isinstance(value, str) and (cuda := _CUDA.fullmatch(value)):
        index = int(cuda[1])
    if index is not None:
        if not 0 <= index < len(numbered):
            listed = ", ".join(f"{number} ({device.id})" for number, device in enumerate(numbered))
            raise InputError(f"{where}: found {value!r}, the inventory has {listed}")
        return numbered[index].id
    if value == "cpu":
        return _cpu(inventory, where)
    if value == "disk":
        raise InputError(f"{where}: found 'disk', expected a device: all weights stay in memory")
    raise InputError(f"{where}: found {value!r}, expected a device: {', '.join(devices)}, or an index")


def _numbered(inventory: Inventory) -> list[Device]:
    """What indices count: the accelerators, or where there is none all devices."""
    accelerators = [device for device in inventory.devices if device.kind == "cuda"]
    return accelerators or list(inventory.devices)


def _cpu(inventory: Inventory, where: str) -> str:
    cpus = [device.id for device in inventory.devices if device.kind == "cpu"]
    if not cpus:
        raise InputError(f"{where}: found 'cpu', and the inventory lists no device of type cpu: add the host's to it")
    if len(cpus) > 1:
        raise InputError(f"{where}: found 'cpu', the inventory has several: give one of {', '.join(cpus)}")
    return cpus[0]


def write(plan: Plan) -> dict[str, int | str]:
    """The device map of a plan, in the order of execution; raise InputError with the first piece that is split.

    Devices are indices and ``cpu`` where that is what accelerate would call them, ids on several hosts or CPUs. A draft
    that is split is left out.
    """
    names = _names(plan.inventory)
    lines = {}
    for module, devices in _pieces(plan):
        if len(devices) > 1:
            raise InputError(
                f"{module} is split over {', '.join(devices)}: a device map places modules whole, so this plan has none"
            )
        lines[module] = names[devices[0]]
    lines["model.rotary_emb"] = lines["model.layers.0"]
    if plan.draft_placement is not None and len(plan.draft_placement.devices) == 1:
        lines[DRAFT] = names[plan.draft_placement.devices[0]]
    return lines


def _pieces(plan: Plan) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "model.embed_tokens", plan.embed.devices
    for stage in plan.stages:
        for layer in range(stage.first_layer, stage.first_layer + stage.num_layers):
            yield f"model.layers.{layer}", stage.devices
    yield "model.norm", plan.head.devices
    yield "lm_head", plan.head.devices


def _names(inventory: Inventory) -> dict[str, int | str]:
    names: dict[str, int | str] = {device.id: device.id for device in inventory.devices}
    cpus = [device.id for device in inventory.devices if device.kind == "cpu"]
    if len(inventory.hosts) == 1:
        names |= {d.id: index for index, d in enumerate(_numbered(inventory)) if d.kind == "cuda"}
        if len(cpus) == 1:
            names[cpus[0]] = "cpu"
    return names
