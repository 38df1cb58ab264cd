"""The part of an inventory that can run models: nothing is placed on other devices, and they decide nothing."""

from collections.abc import Collection
from dataclasses import replace

from planner.errors import InputError
from plans.schema import Inventory, Options
from plans.usable import by_reason, unusable_devices


def usable_inventory(inventory: Inventory, options: Options) -> Inventory:
    """Return the inventory without devices that run no model, and without hosts and links that then have none.

    Raise InputError where no device is left, or where a device map names one of the others.
    """
    unusable = refuse_unusable(inventory, options)
    if not unusable:
        return inventory
    return part_of(inventory, [device.id for device in inventory.devices if device.id not in unusable])


def part_of(inventory: Inventory, ids: Collection[str]) -> Inventory:
    """Return the inventory with these devices alone, in its order, and with their hosts and links."""
    kept = frozenset(ids)
    devices = tuple(device for device in inventory.devices if device.id in kept)
    in_use = {device.host for device in devices}
    hosts = tuple(
        replace(host, pairs=tuple(pair for pair in host.pairs if pair.a in kept and pair.b in kept))
        for host in inventory.hosts
        if host.name in in_use
    )
    return replace(inventory, hosts=hosts, devices=devices, network=inventory.network if len(hosts) > 1 else None)


def refuse_unusable(inventory: Inventory, options: Options) -> dict[str, str]:
    """Return the devices that run no model, by id, with the reason; raise InputError where one would have to.

    That is where there is no other device, or where a device map names it.
    """
    unusable = unusable_devices(inventory)
    for pin in options.custom or ():
        if pin.device in unusable:
            raise InputError(
                f"device map: {pin.module} is on {pin.device}: {unusable[pin.device]}: name another device"
            )
    if len(unusable) == len(inventory.devices):
        reasons = "; ".join(by_reason(unusable))
        raise InputError(f"inventory: no device can run a model: {reasons}: add a newer GPU or a CPU")
    return unusable
