"""Measures the CPUs of an inventory of this machine, by commands of the runtime, which the planner does not import.

``calibrate`` gives rates and messages. Then the embedded demo model, whose weights take next to no time, is planned on
one device with these rates, compiled and timed by ``bench``: the overhead of a block is what its plain and EAGLE steps
took beyond their bytes and arithmetic, divided by their blocks (``planner.costs.fixed_work``). Of several runs, spread
over the time, the shortest step of each kind counts, as other programs make one longer and none shorter.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.api.compiling import compile as compile_images
from planner.api.planning import plan as plan_model
from planner.errors import DetectionError, InputError
from planner.hardware.inventory import parse_inventory
from planner.hardware.measured import Figure, device_data, figure_of, link_data, link_of, rates_of
from planner.problem.placed import plain_step_ns, step_ns
from plans.schema import Plan, Tree
from plans.strict_yaml import dump_yaml

LONGEST_S = 60
"""Time that one command may take."""
MODULE = "runtime"
TREE = Tree(kind="dynamic", total_token=8, depth=3, top_k=2, paths=None)
BENCH = ("--json", "--quiet", "--repeats", "5", "--prompt-tokens", "8", "--max-new-tokens", "64")
BENCHES = 3
UNIT_NS = 1_000_000


def measure(data: Any, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the plain data of an inventory with measured figures, and lines on what was measured and what was not.

    All CPU devices compute at once, as they do in a plan, and share the cores. ``where`` names the file. Raise
    InputError for what is no inventory of one machine with a CPU device, and DetectionError where a command fails.
    """
    inventory = parse_inventory(data, where)
    if len(inventory.hosts) > 1 and (inventory.network is None or inventory.network.link_class != "shm"):
        raise InputError(
            f"{where}: several hosts, and only this machine can be measured: measure an inventory of each host on it, "
            "and put the hosts into one file"
        )
    cpus = [device.id for device in inventory.devices if device.kind == "cpu"]
    others = [device.id for device in inventory.devices if device.kind != "cpu"]
    if not cpus:
        raise InputError(f"{where}: no CPU device, and GPUs are not measured: their figures stay as they are")
    samples = calibrated(len(cpus))
    rates, link = rates_of(samples), link_of(samples)
    with tempfile.TemporaryDirectory(prefix="measure-") as directory:
        planned = demo_plan(Path(directory), device_data(rates, None))
        overhead = overhead_of(planned, timed(Path(directory) / "plan"))
    measured = device_data(rates, overhead)
    hosts = [
        host
        | {"devices": [own | {"measured": measured} if own["id"] in cpus else own for own in host["devices"]]}
        | ({"links": _with_link(host.get("links"), link_data(link))} if link and not others else {})
        for host in data["hosts"]
    ]
    network = {"network": data["network"] | {"measured": link_data(link)}} if link and "network" in data else {}
    return data | {"hosts": hosts} | network, tuple(_lines(samples, cpus, others))


def demo_plan(directory: Path, rates: dict[str, Any]) -> Plan:
    """Plan and compile the demo model into ``directory``/plan, on one CPU with these rates; return the plan."""
    device = {"id": "cpu0", "type": "cpu", "memory": "1 GiB", "bandwidth": "1 GB/s", "measured": rates}
    inventory = directory / "inventory.yaml"
    inventory.write_text(dump_yaml({"hosts": [{"name": "box0", "devices": [device]}]}))
    result = plan_model(inventory=inventory, tree=TREE, context=128)
    result.write(directory / "plan")
    compile_images(directory / "plan")
    return result.plan


def timed(directory: Path) -> dict[str, int]:
    """Return the ns of a step by mode, plain and eagle, as the runtime takes them: the least of BENCHES runs."""
    least: dict[str, int] = {}
    for _ in range(BENCHES):
        for mode in _output("bench", str(directory), *BENCH)["modes"]:
            own = round(mode["step_s"] * 1e9)
            least[mode["name"]] = min(own, least.get(mode["name"], own))
    return least


def overhead_of(plan: Plan, measured_ns: Mapping[str, int]) -> Figure:
    """Return the overhead of a block by which plain and EAGLE steps of a plan take what was measured."""
    steps: dict[str, Callable[[Plan], int]] = {
        "plain": plain_step_ns,
        "eagle": lambda planned: step_ns(planned, planned.options),
    }
    overheads = []
    for mode, predicted in steps.items():
        none, some = (predicted(_with_overhead(plan, overhead_ns)) for overhead_ns in (0, UNIT_NS))
        overheads.append(max(0, measured_ns[mode] - none) * UNIT_NS / (some - none))
    return figure_of(overheads)


def _with_overhead(plan: Plan, overhead_ns: int) -> Plan:
    devices = tuple(replace(device, overhead_ns=overhead_ns) for device in plan.inventory.devices)
    return replace(plan, inventory=replace(plan.inventory, devices=devices))


def calibrated(processes: int) -> dict[str, Any]:
    """Return the samples of ``python -m runtime calibrate``."""
    return _output("calibrate", "--processes", str(processes))


def _output(*arguments: str) -> dict[str, Any]:
    """Return the JSON that a command of the runtime prints; raise DetectionError where it prints none."""
    command = [sys.executable, "-m", MODULE, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DetectionError(f"the machine is too busy to be measured within {LONGEST_S} s: end other work") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DetectionError(f"`python {' '.join(command[1:3])} {arguments[0]}` ended with {done.returncode}: {reason}")
    data: dict[str, Any] = json.loads(done.stdout)
    return data


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
    link = link_of(samples)
    for members, own in sorted(link.groups.items()) if link else ():
        took = f"{own.median / 1000:.0f} us, spread {own.spread / 1000:.0f} us"
        lines.append(f"sum of {members} processes through shared memory: {took}")
    return [*lines, f"not measured, figures stay: links with GPUs, {', '.join(others)}"] if others else lines
