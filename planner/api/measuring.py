"""Measures the CPUs of an inventory of this machine, by commands of the runtime, which the planner does not import.

``calibrate`` gives rates and messages, of devices alone and of several at once; steps of the demo model give fixed
times (:mod:`planner.api.fixed_times`). Half of the samples are taken before these steps and half behind them: a virtual
machine is slower for half a minute, and faster again.
"""

import time
from typing import Any

from planner.api.fixed_times import demo_steps, with_awake, with_fixed_times
from planner.api.samples import calibrated, joined
from planner.errors import InputError
from planner.hardware.inventory import parse_inventory
from planner.hardware.measured import device_data, link_data, link_of, rates_of


def measure(data: Any, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the plain data of an inventory with measured figures, and lines on what was measured and what was not.

    ``where`` names the file. Raise InputError for what is no inventory of one machine with a CPU device, and
    DetectionError where a command fails.
    """
    inventory, began = parse_inventory(data, where), time.monotonic()
    if len(inventory.hosts) > 1 and (inventory.network is None or inventory.network.link_class != "shm"):
        raise InputError(
            f"{where}: several hosts, and only this machine can be measured: measure an inventory of each host on it, "
            "and put the hosts into one file"
        )
    cpus = [device.id for device in inventory.devices if device.kind == "cpu"]
    others = [device.id for device in inventory.devices if device.kind != "cpu"]
    if not cpus:
        raise InputError(f"{where}: no CPU device, and GPUs are not measured: their figures stay as they are")
    before = calibrated(len(cpus))
    steps = demo_steps(map(int, before["products_ns"]), before["threads"])
    samples = joined(before, calibrated(len(cpus)))
    link = with_awake(link_of(samples), steps)
    measured = device_data(with_fixed_times(rates_of(samples), link, steps))
    hosts = [
        host
        | {"devices": [_with_measured(own, measured) if own["id"] in cpus else own for own in host["devices"]]}
        | ({"links": _with_link(host.get("links"), link_data(link))} if link and not others else {})
        for host in data["hosts"]
    ]
    network = {"network": data["network"] | {"measured": link_data(link)}} if link and "network" in data else {}
    took = f"took {time.monotonic() - began:.0f} s"
    return data | {"hosts": hosts} | network, (*_lines(samples, cpus, others), took)


def _with_measured(device: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a device with measured figures, which count instead of its ``together``."""
    return {name: value for name, value in device.items() if name != "together"} | {"measured": measured}


def _with_link(links: Any, measured: dict[str, Any]) -> dict[str, Any]:
    """Return the field ``links`` of a host with a measured link; a list of pairs becomes part of a mapping."""
    fields = {"pairs": links} if isinstance(links, list) else dict(links or {})
    return fields | {"measured": measured}


def _lines(samples: dict[str, Any], cpus: list[str], others: list[str]) -> list[str]:
    threads, cores = samples["threads"], samples["cores"]
    shared = (
        f"{len(cpus)} devices, alone and at once, share {cores} cores"
        if len(cpus) > 1
        else f"one device, {cores} cores"
    )
    lines = [f"measured: {', '.join(cpus)}: {shared}; {threads} thread{'s' if threads > 1 else ''} each"]
    link = link_of(samples)
    for members, own in sorted(link.groups.items()) if link else ():
        took = f"{own.value / 1000:.0f} us, spread {own.spread / 1000:.0f} us"
        lines.append(f"sum of {members} processes through shared memory: {took}")
    return [*lines, f"not measured, figures stay: links with GPUs, {', '.join(others)}"] if others else lines
