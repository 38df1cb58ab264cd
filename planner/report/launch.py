"""Files that start a fleet: commands, systemd units and docker-compose of each host, nginx in front of the servers.

    HOST/replica-N.sh          the server of a replica on one host; torchrun, of this host, for one on several
    HOST/replica-N.service     the same server as a systemd unit
    HOST/docker-compose.yaml   the same servers as containers
    nginx.conf                 upstream over all servers: for the ``http`` block, as Debian's /etc/nginx/conf.d/

The runtime serves plans of one host; a replica on several is run by torchrun, and is behind no nginx. All hosts have
the fleet's directory under the same path, and the Python that units run. Least connections are weighted by the
sequences of a replica. nginx checks servers by the requests that it sends: open source nginx has none of its own.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from plans.fleet import Fleet, Replica
from plans.fleet_diff import LoadedFleet
from plans.schema import Device, Plan

FIRST_PORT = 8001
"""Port of the first server of a host; the following ones have the next ports."""
FRONT_PORT = 8000
"""Port of nginx."""
MASTER_PORT = 29500
"""Port of torchrun's store of the first replica over several hosts."""
GPUS = "EAGLEPLAN_GPUS"
"""Variable of the runtime: the accelerators of this host that take the place of the plan's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A replica as one host runs it."""

    number: int
    """Of the replica."""
    template: str
    host: str
    node: int
    """Place of the host among those of the replica."""
    nodes: int
    devices: tuple[Device, ...]
    """On this host and in use, in the order of the plan's."""
    gpus: str
    """Ordinals of the accelerators of this host, in the order of the plan's; empty for CPUs alone."""
    master: str
    port: int
    weight: int

    @property
    def is_served(self) -> bool:
        """It has an HTTP server."""
        return self.nodes == 1


def files(loaded: LoadedFleet, directory: Path, python: str) -> dict[str, str]:
    """Return the content of each file by its name below the launch directory.

    ``directory``: of the fleet. ``python``: path of the Python that units run, as systemd looks into no environment.
    """
    servers = servers_of(loaded)
    several = len(loaded.fleet.inventory.hosts) > 1
    shared = {"directory": str(directory), "name": directory.name, "several": several, "front_port": FRONT_PORT}
    of_unit = shared | {"python": python}
    result = {}
    for server in servers:
        base = f"{server.host}/replica-{server.number}"
        result[f"{base}.sh"] = _render("replica.sh.jinja", shared | {"server": server})
        if server.is_served:
            result[f"{base}.service"] = _render("replica.service.jinja", of_unit | {"server": server})
    served = [server for server in servers if server.is_served]
    for host in dict.fromkeys(server.host for server in served):
        own = [server for server in served if server.host == host]
        content = _render("docker-compose.yaml.jinja", shared | {"servers": own, "front": own[0] is served[0]})
        result[f"{host}/docker-compose.yaml"] = content
    if served:
        result["nginx.conf"] = _render("nginx.conf.jinja", shared | {"servers": served})
    return dict(sorted(result.items()))


def notes(loaded: LoadedFleet, python: str) -> list[str]:
    """Return what a reader of the files has to know; ``python``: that of the units."""
    wide = [str(number) for number, nodes in enumerate(_nodes(loaded)) if nodes > 1]
    lines = ["compile the images of each template before, in this directory on every host"]
    if len(wide) < len(loaded.fleet.replicas):
        lines.append(f"the systemd units run {python}, on every host")
    if wide:
        lines.append(f"replicas {', '.join(wide)} are over several hosts: run by torchrun, behind no nginx")
    if len(loaded.fleet.inventory.hosts) > 1:
        lines.append("servers of several hosts ask for the key in launch/key, which is yours to write")
    return lines


def servers_of(loaded: LoadedFleet) -> list[Server]:
    """Return every replica on each of its hosts, in order."""
    ports: dict[str, int] = {}
    wide = 0
    servers = []
    for number, replica in enumerate(loaded.fleet.replicas):
        by_host = _by_host(loaded.fleet, replica)
        used = _used(loaded.plans[replica.template], replica)
        wide += len(by_host) > 1
        for node, (host, devices) in enumerate(by_host.items()):
            if len(by_host) == 1:
                ports[host] = ports.get(host, FIRST_PORT - 1) + 1
            servers.append(
                Server(
                    number=number,
                    template=replica.template,
                    host=host,
                    node=node,
                    nodes=len(by_host),
                    devices=tuple(device for device in devices if device.id in used),
                    gpus=",".join(str(device.ordinal) for device in devices if device.kind == "cuda"),
                    master=next(iter(by_host)),
                    port=ports[host] if len(by_host) == 1 else MASTER_PORT + wide - 1,
                    weight=replica.sequences,
                )
            )
    return servers


def _nodes(loaded: LoadedFleet) -> list[int]:
    return [len(_by_host(loaded.fleet, replica)) for replica in loaded.fleet.replicas]


def _by_host(fleet: Fleet, replica: Replica) -> dict[str, list[Device]]:
    """Return the devices of a replica by host, both in the order of the plan."""
    known = {device.id: device for device in fleet.inventory.devices}
    hosts: dict[str, list[Device]] = {}
    for name in replica.devices:
        hosts.setdefault(known[name].host, []).append(known[name])
    return hosts


def _used(plan: Plan, replica: Replica) -> set[str]:
    """Return the devices in use, as the fleet names them."""
    names = dict(zip((device.id for device in plan.inventory.devices), replica.devices, strict=True))
    return {names[line.device] for line in plan.memory}


def _unit(words: Sequence[str]) -> str:
    """Return a command as a systemd unit has it: quoted, with ``%`` and ``$`` doubled."""
    quoted = (word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$") for word in words)
    return " ".join(f'"{word}"' if set(word) & set(" '\t;") or not word else word for word in quoted)


def _address(server: Server, several: bool) -> str:
    """Return the address that a server listens on."""
    return server.host if several else "127.0.0.1"


def serve_command(server: Server, directory: str, name: str, several: bool) -> list[str]:
    """Return the command of a server, without what finds the program."""
    command = ["serve", f"{directory}/{server.template}", "--host", _address(server, several)]
    command += ["--port", str(server.port), "--model-name", name]
    return [*command, "--api-key-file", f"{directory}/launch/key"] if several else command


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("planner.report", "templates/launch"),
    autoescape=False,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"shell": shlex.join, "unit": _unit}
_TEMPLATES.globals |= {"serve_command": serve_command, "address": _address, "gpus_variable": GPUS}


def _render(template: str, content: dict[str, object]) -> str:
    return _TEMPLATES.get_template(template).render(content)
