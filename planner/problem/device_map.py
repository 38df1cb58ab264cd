"""Reads and writes Hugging Face device maps: which module is on which device, as accelerate and transformers have it.

The longest name that is the module or contains it decides, as in accelerate. A placement consists of whole pieces: the
embedding, each layer, and the head, which is the final norm with ``lm_head``; and the EAGLE head, if the map names it
as ``draft``, which is no module of theirs. A device is an id of the inventory, an index into its accelerators (into all
devices where there is none) as 1 or ``cuda:1``, or ``cpu``.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from planner.errors import InputError
from plans.codec import read_document
from plans.format import quote
from plans.schema import Draft, Inventory, Model, Pin, Plan, PlanError
from plans.strict_yaml import load_yaml

DRAFT = "draft"
"""Name of the EAGLE head in a device map."""

_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,8})")
_CUDA = re.compile(r"cuda:(0|[1-9][0-9]{0,8})")
_WHOLE = ("", "model", "model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head", DRAFT)
_TENSORS = {f"{name}.weight": name for name in ("model.embed_tokens", "model.norm", "lm_head")}


class Listed(Protocol):
    """A device of an inventory, with its id and kind."""

    @property
    def id(self) -> str:
        """The name by which a map may refer to it."""

    @property
    def kind(self) -> Literal["cuda", "cpu"]:
        """Indices count accelerators only, where there is any."""


def load_device_map(path: Path) -> Any:
    """Read a file in YAML or JSON as plain data, for :func:`read`; raise InputError where there is none."""
    try:
        data = load_yaml(read_document(path, inside=False), str(path))
    except OSError as error:
        raise InputError(f"--device-map {path}: cannot read: {error.strerror}") from error
    except PlanError as error:
        raise InputError(str(error)) from error
    if data is None:
        raise InputError(f"{path}: found nothing, expected a mapping of modules to devices")
    return data


def read(data: Any, where: str, model: Model, draft: Draft | None, devices: Sequence[Listed]) -> tuple[Pin, ...]:
    """Return pins of ``embed``, each ``layers.<i>``, ``head``, and ``draft`` if it is named; sorted by module.

    ``where`` names the file in messages. Raise InputError for an unknown module or device, for a module that no line
    covers, and for a map that divides a piece.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: found {type(data).__name__}, expected a mapping of modules to devices")
    layers = model.num_layers
    lines: dict[str, str] = {}
    for name, value in data.items():
        module = _module(name, f"{where}: {quote(name)}", layers)
        lines[module] = _device(value, f"{where}: {quote(name)}", devices)
    if draft is None and DRAFT in lines:
        raise InputError(f"{where}: {DRAFT!r}: there is no EAGLE head to place: take the line out, or give --draft")
    if model.tied_head and "model.embed_tokens" in lines:
        lines.setdefault("lm_head", lines["model.embed_tokens"])  # one tensor: its line covers both
    pins = {f"layers.{i}": _device_of(f"model.layers.{i}", lines, where) for i in range(layers)}
    pins |= {"embed": _device_of("model.embed_tokens", lines, where), "head": _device_of("lm_head", lines, where)}
    _check_norm(_device_of("model.norm", lines, where), pins["head"], pins[f"layers.{layers - 1}"], model, where)
    if DRAFT in lines:
        pins[DRAFT] = lines[DRAFT]
    return tuple(Pin(module=module, device=pins[module]) for module in sorted(pins))


def _module(name: str, where: str, layers: int) -> str:
    """Return the name of a known module; raise InputError for other names, and for a part of a layer."""
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


def _device_of(module: str, lines: Mapping[str, str], where: str) -> str:
    """Return the device of a module: that of its own line, or of the nearest module that contains it."""
    name = module
    while name not in lines:
        if not name:
            raise InputError(f"{where}: {module}: no line covers it: name it, or a module that has it")
        name = name.rpartition(".")[0]
    return lines[name]


def _check_norm(norm: str, head: str, last: str, model: Model, where: str) -> None:
    """Raise InputError where the final norm is not on the device of ``lm_head``, which runs it.

    A tied ``lm_head`` is kept with the embedding by accelerate, so there the norm may be listed with the last layer.
    """
    if norm != head and not (model.tied_head and norm == last):
        raise InputError(
            f"{where}: model.norm is on {norm} and lm_head on {head}: the two are one piece, expected one device"
        )


def _device(value: Any, where: str, devices: Sequence[Listed]) -> str:
    """Return the id of the device that a line names; raise InputError for anything that is no device."""
    ids = [device.id for device in devices]
    if isinstance(value, str) and value in ids:
        return value
    numbered = _numbered(devices)
    index = value if type(value) is int else None
    if isinstance(value, str) and (cuda := _CUDA.fullmatch(value)):
        index = int(cuda[1])
    if index is not None:
        if not 0 <= index < len(numbered):
            listed = ", ".join(f"{number} ({name})" for number, name in enumerate(numbered))
            raise InputError(f"{where}: found {quote(value)}, the inventory has {listed}")
        return numbered[index]
    if value == "cpu":
        return _cpu(devices, where)
    if value == "disk":
        raise InputError(f"{where}: found 'disk', expected a device: all weights stay in memory")
    raise InputError(f"{where}: found {quote(value)}, expected a device: {', '.join(ids)}, or an index")


def _numbered(devices: Sequence[Listed]) -> list[str]:
    """Return the ids that indices count: those of the accelerators, or where there is none of all devices."""
    accelerators = [device.id for device in devices if device.kind == "cuda"]
    return accelerators or [device.id for device in devices]


def _cpus(devices: Sequence[Listed]) -> list[str]:
    return [device.id for device in devices if device.kind == "cpu"]


def _cpu(devices: Sequence[Listed], where: str) -> str:
    """Return the id of the only CPU; raise InputError where there is none or more than one."""
    cpus = _cpus(devices)
    if not cpus:
        raise InputError(f"{where}: found 'cpu', and the inventory lists no device of type cpu: add the host's to it")
    if len(cpus) > 1:
        raise InputError(f"{where}: found 'cpu', the inventory has several: give one of {', '.join(cpus)}")
    return cpus[0]


def write(plan: Plan) -> dict[str, int | str]:
    """Return the device map of a plan, in the order of execution; raise InputError for a piece that is split.

    On one host devices are called as accelerate calls them, by index or ``cpu``; on several hosts, or with several
    CPUs, by id. A drafter that is split is left out.
    """
    called = names(plan.inventory)
    lines = {}
    for module, devices in _pieces(plan):
        if len(devices) > 1:
            raise InputError(
                f"{module} is split over {', '.join(devices)}: a device map places modules whole, so this plan has none"
            )
        lines[module] = called[devices[0]]
    lines["model.rotary_emb"] = lines["model.layers.0"]
    if plan.draft_placement is not None and len(plan.draft_placement.devices) == 1:
        lines[DRAFT] = called[plan.draft_placement.devices[0]]
    return lines


def _pieces(plan: Plan) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield modules with their devices, in the order of execution."""
    yield "model.embed_tokens", plan.embed.devices
    for stage in plan.stages:
        for layer in range(stage.first_layer, stage.first_layer + stage.num_layers):
            yield f"model.layers.{layer}", stage.devices
    yield "model.norm", plan.head.devices
    yield "lm_head", plan.head.devices


def names(inventory: Inventory) -> dict[str, int | str]:
    """Return the name of each device in a map, by id."""
    devices = inventory.devices
    called: dict[str, int | str] = {device.id: device.id for device in devices}
    if len(inventory.hosts) > 1:
        return called
    cpus = _cpus(devices)
    if len(cpus) < len(devices):
        called |= {name: index for index, name in enumerate(_numbered(devices))}
    if len(cpus) == 1:
        called[cpus[0]] = "cpu"
    return called
