"""Measures the CPUs of an inventory of this machine, by a command of the runtime, which the planner does not import."""

import json
import subprocess
import sys
from typing import Any

from planner.errors import DetectionError
from planner.hardware.inventory import parse_inventory
from planner.hardware.measured import link_data, link_of, rates_data, rates_of

LONGEST_S = 60
"""Time within which everything is measured."""
MODULE = "runtime"


def measure(data: Any, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the plain data of an inventory with measured figures, and lines on what was measured and what was not.

    All CPU devices compute at once, as they do in a plan, and share the cores. ``where`` names the file. Raise
    InventoryError for what is no inventory of one machine, and DetectionError where nothing can be measured.
    """
    inventory = parse_inventory(data, where)
    if len(inventory.hosts) > 1 and (inventory.network is None or inventory.network.link_class != "shm"):
        raise DetectionError(
            f"{where}: several hosts, and only this machine can be measured: measure an inventory of each host on it, "
            "and put the hosts into one file"
        )
    cpus = [device.id for device in inventory.devices if device.kind == "cpu"]
    others = [device.id for device in inventory.devices if device.kind != "cpu"]
    if not cpus:
        raise DetectionError(f"{where}: no CPU device, and GPUs are not measured: their figures stay as they are")
    samples = calibrated(len(cpus))
    rates, link = rates_data(rates_of(samples)), link_of(samples)
    hosts = [
        host
        | {"devices": [own | {"measured": rates} if own["id"] in cpus else own for own in host["devices"]]}
        | ({"links": _with_link(host.get("links"), link_data(link))} if link and not others else {})
        for host in data["hosts"]
    ]
    network = {"network": data["network"] | {"measured": link_data(link)}} if link and "network" in data else {}
    return data | {"hosts": hosts} | network, tuple(_lines(samples, cpus, others))


def calibrated(processes: int) -> dict[str, Any]:
    """Return the samples of ``python -m runtime calibrate``; raise DetectionError where it does not give them."""
    command = [sys.executable, "-m", MODULE, "calibrate", "--processes", str(processes)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DetectionError(f"the machine is too busy to be measured within {LONGEST_S} s: end other work") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DetectionError(f"`{' '.join(command[1:])}` ended with {done.returncode}: {reason}")
    samples: dict[str, Any] = json.loads(done.stdout)
    return samples


def _with_link(links: Any, measured: dict[str, Any]) -> dict[str, Any]:
    """Return the field ``links`` of a host with a measured link; a list of pairs becomes part of a mapping."""
    fields = {"pairs": links} if isinstance(links, list) else dict(links or {})
    return fields | {"measured": measured}


def _lines(samples: dict[str, Any], cpus: list[str], others: list[str]) -> list[str]:
    threads, cores = samples["threads"], samples["cores"]
    together = (
        f"{len(cpus)} devices, all at once, share {cores} cores" if len(cpus) > 1 else f"one device, {cores} cores"
    )
    lines = [f"measured: {', '.join(cpus)}: {together}; {threads} thread{'s' if threads > 1 else ''} each"]
    if len(cpus) > cores:
        lines.append(f"more devices than cores: each is as slow as when all {len(cpus)} compute")
    kept = [*(["links with GPUs"] if others else []), *others]
    return [*lines, f"not measured, figures stay: overhead{', ' if kept else ''}{', '.join(kept)}"]
