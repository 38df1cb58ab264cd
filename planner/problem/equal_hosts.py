"""Equal hosts: a few of many that nothing but a name tells apart are searched, and the rest is left out.

That the optimum is unchanged is proven afterwards, from what more hosts would cost at least
(:mod:`planner.problem.wider`): an answer on few hosts is one on any other hosts that are equal to these.
"""

from collections.abc import Set
from dataclasses import replace

from planner.problem.machine import look_of
from plans.schema import Device, Host, Inventory


def with_few_hosts(inventory: Inventory, most: int, named: Set[str]) -> Inventory:
    """Return the inventory with the first ``most`` of any equal hosts, and with all that are ``named``."""
    kept: dict[str, Host] = {}
    numbers: dict[tuple[object, ...], int] = {}
    devices: dict[str, list[Device]] = {host.name: [] for host in inventory.hosts}
    for device in inventory.devices:
        devices[device.host].append(device)
    for host in inventory.hosts:
        look = _look(host, devices[host.name])
        if host.name in named:
            kept[host.name] = host
        elif numbers.get(look, 0) < most:
            numbers[look] = numbers.get(look, 0) + 1
            kept[host.name] = host
    if len(kept) == len(inventory.hosts):
        return inventory
    return replace(
        inventory,
        hosts=tuple(kept.values()),
        devices=tuple(device for device in inventory.devices if device.host in kept),
    )


def _look(host: Host, devices: list[Device]) -> tuple[object, ...]:
    """Return the figures and links of a host without names; those with pairs in the order of the inventory.

    Equal ones that are in canonical order are equal in this.
    """
    place = {device.id: number for number, device in enumerate(devices)}
    looks = list(map(look_of, devices))
    pairs = tuple((place[pair.a], place[pair.b], pair.link) for pair in host.pairs)
    return host.link if len(devices) > 1 else None, host.transport, pairs, tuple(looks if pairs else sorted(looks))
