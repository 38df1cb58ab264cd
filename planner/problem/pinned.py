"""Reads the pins of a device map as a chain: which devices run which layers one after the other, and hold the rest."""

from dataclasses import dataclass
from itertools import groupby

from planner.costs.topology import Fabric
from planner.errors import InputError
from plans.schema import Model, Options


@dataclass(frozen=True, kw_only=True, slots=True)
class PinnedChain:
    """A device map: devices as indices, layers in the order of execution."""

    embed: int
    runs: tuple[tuple[int, int], ...]
    """(device, number of layers), in the order of execution."""
    head: int
    draft: int | None


def pinned_chain(model: Model, options: Options, fabric: Fabric) -> PinnedChain:
    """Return the chain of the strategy ``custom``; raise InputError for pins that are no chain of whole layers."""
    devices = {device.id: index for index, device in enumerate(fabric.inventory.devices)}
    total = model.num_layers
    layers = [f"layers.{i}" for i in range(total)]
    pins: dict[str, int] = {}
    for pin in options.custom or ():
        if pin.module not in ("embed", "head", "draft", *layers):
            raise InputError(f"device map: {pin.module}: expected embed, layers.0 to {layers[-1]}, head or draft")
        if pin.device not in devices:
            raise InputError(f"device map: {pin.module}: found {pin.device}, expected one of {', '.join(devices)}")
        pins[pin.module] = devices[pin.device]
    missing = [module for module in ("embed", *layers, "head") if module not in pins]
    if missing:
        raise InputError(f"device map: {missing[0]} is on no device: name it, or the module that has it")
    runs = [(device, list(run)) for device, run in groupby(layers, key=pins.__getitem__)]
    _refuse_returns(fabric, runs)
    return PinnedChain(
        embed=pins["embed"],
        runs=tuple((device, len(run)) for device, run in runs),
        head=pins["head"],
        draft=pins.get("draft"),
    )


def _refuse_returns(fabric: Fabric, runs: list[tuple[int, list[str]]]) -> None:
    """Raise InputError where the layers of a device, or of a host, do not follow one another."""
    names = [device.id for device in fabric.inventory.devices]
    for i, (device, layers) in enumerate(runs):
        host = fabric.host_of[device]
        for earlier, others in runs[:i]:
            if earlier == device:
                raise InputError(
                    f"device map: {layers[0]} is on {names[device]}, which has {others[0]} to {others[-1]} and not "
                    f"{runs[i - 1][1][-1]}: the layers of a device follow one another"
                )
        between = [earlier for earlier, _ in runs[:i]]
        if host in map(fabric.host_of.__getitem__, between) and fabric.host_of[between[-1]] != host:
            raise InputError(
                f"device map: {layers[0]} is on host {fabric.host_names[host]}, which was left before "
                f"{runs[i - 1][1][0]}: the layers of a host follow one another"
            )
