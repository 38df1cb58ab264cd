"""The part of an inventory that can run a model: nothing is placed on other devices, and they decide nothing."""

from dataclasses import replace

from planner.errors import InputError
from plans.schema import Draft, Inventory, Model, Options
from plans.usable import by_reason, unusable_devices


def usable_inventory(inventory: Inventory, options: Options, model: Model, draft: Draft | None) -> Inventory:
    """Return the inventory without devices that cannot run the model, and without hosts and links that then have none.

    Raise InputError where no device is left, or where a device map names one of the others.
    """
    unusable = refuse_unusable(inventory, options, model, draft)
    if not unusable:
        return inventory
    devices = tuple(device for device in inventory.devices if device.id not in unusable)
    in_use = {device.host for device in devices}
    hosts = tuple(
        replace(host, pairs=tuple(pair for pair in host.pairs if not {pair.a, pair.b} & unusable.keys()))
        for host in inventory.hosts
        if host.name in in_use
    )
    return replace(inventory, hosts=hosts, devices=devices, network=inventory.network if len(hosts) > 1 else None)


def refuse_unusable(inventory: Inventory, options: Options, model: Model, draft: Draft | None) -> dict[str, str]:
    """Return the devices that cannot run the model, by id, with the reason; raise InputError where one would have to.

    That is where there is no other device, or where a device map names it.
    """
    unusable = unusable_devices(inventory, options, model, draft)
    for pin in options.custom or ():
        if pin.device in unusable:
            raise InputError(
                f"device map: {pin.module} is on {pin.device}: {unusable[pin.device]}; or name another device"
            )
    if len(unusable) == len(inventory.devices):
        raise InputError(f"inventory: no device can run the model: {'; '.join(by_reason(unusable))}")
    return unusable
