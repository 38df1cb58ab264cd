"""``inventory``: an inventory with its defaults written out, or that of this machine."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from planner.api import detecting
from planner.commands.console import put, say
from planner.errors import InputError, OutputError
from planner.hardware import units
from planner.hardware.catalog import catalog
from planner.hardware.inventory import parse_inventory, read_inventory
from planner.hardware.inventory_text import dump_inventory
from plans import codec, durable
from plans.process import importing
from plans.schema import Device, DType, Inventory
from plans.strict_yaml import load_yaml
from plans.terminal import out

DEFAULT_FILE = Path("inventory.yaml")


def run(*, file: Path | None, detect: bool, measure: bool, dtype: DType, as_json: bool, verbose: int) -> None:
    """Write an inventory: that of ``file``, with ``detect`` that of this machine, with ``measure`` with its figures."""
    if detect and measure:
        raise InputError("--detect and --measure: give one; --measure detects the machine where FILE does not exist")
    if measure:
        with importing():
            measuring = import_module("planner.commands.measure")  # which plans, and so loads the solver
        measuring.run(file=file, dtype=dtype, as_json=as_json, verbose=verbose)
        return
    if detect:
        write_detected(file, dtype, as_json, verbose)
        return
    source = file or DEFAULT_FILE
    data = read_inventory(source)
    inventory = parse_inventory(data, str(source)).at(dtype)
    say_devices(data, inventory, verbose)
    if as_json:
        put({"inventory": codec.encode(inventory)})
    else:
        out(dump_inventory(inventory), end="")


def write_detected(file: Path | None, dtype: DType, as_json: bool, verbose: int) -> None:
    """Detect the GPUs of this machine, or measure its CPU if there is none, and write their inventory.

    It goes to ``file``, which must be new, or to stdout.
    """
    detected = detecting.detect(dtype)
    for line in detected.left_out:
        say(f"left out: {line}")
    inventory = detected.inventory.at(dtype)
    say_devices(load_yaml(detected.text, "detected"), inventory, verbose)
    if file is not None:
        try:
            durable.write_new(file, detected.text)
        except OSError as error:
            advice = ": give a new file" if isinstance(error, FileExistsError) else ""
            raise OutputError(f"{file}: cannot write the inventory: {error.strerror}{advice}") from error
        say(f"{file}: {len(inventory.devices)} device{'s' if len(inventory.devices) != 1 else ''}")
    if as_json:
        put({"inventory": codec.encode(inventory), "left_out": list(detected.left_out)})
    elif file is None:
        out(detected.text, end="")


def say_devices(data: Any, inventory: Inventory, verbose: int) -> None:
    """Write each device with the source of each figure, with -v; ``data``: the inventory before its defaults."""
    if verbose:
        fields = {entry["id"]: entry for host in data["hosts"] for entry in host["devices"]}
        for device in inventory.devices:
            for line in device_lines(device, fields[device.id]):
                say(line)


def device_lines(device: Device, fields: dict[str, Any]) -> Iterator[str]:
    """Yield the figures of a device, one a line: given in its ``fields``, or from the catalogue or a default."""
    known = catalog().devices.get(device.type)
    yield f"{device.id} on {device.host}: {device.type}" + (f", in the catalogue from {known.source}" if known else "")
    default = "catalogue" if known else "default of a type that the catalogue does not list"
    figures = (
        ("memory", units.SIZE, device.memory_bytes),
        ("reserve", units.SIZE, device.reserve_bytes),
        ("bandwidth", units.BANDWIDTH, device.bandwidth_bytes_per_s),
        ("flops", units.RATE, device.flops_per_s),
        ("overhead", units.DURATION, device.overhead_ns),
    )
    for name, quantity, value in figures:
        yield f"  {name:<10} {units.render(quantity, value):<14} {'given' if name in fields else default}"
