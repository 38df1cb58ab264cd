"""A division as ``fleet.yaml`` records it: templates under neutral names, and the devices of every replica.

Names of a template, its hosts and its devices follow from its form alone, so that a machine under other names has the
same plans. The devices of a replica are in canonical order, in which equal parts correspond.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.fleet.divide import Running, Template
from planner.fleet.parts import Form, Parts, restricted, subsets_of
from planner.problem.machine import canonical_machine
from planner.solver.division import Answer
from plans.codec import digest
from plans.fleet import FleetTemplate, Replica, microtokens_per_s
from plans.schema import Device, Inventory, Pair, Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A template that was solved."""

    plan: Plan
    acceptance_ppm: int

    @property
    def speed(self) -> int:
        """Of each sequence, in millionths of a token per second."""
        return microtokens_per_s(self.acceptance_ppm, self.plan.proof.objective_ns)


def neutral(inventory: Inventory, devices: Sequence[int]) -> Inventory:
    """Return a part as the inventory of a plan: hosts ``host0``, …, devices ``d0``, …, accelerators counted anew.

    ``devices``: in canonical order. A plan of it runs on any accelerators of the type: ordinals are those of a replica.
    """
    part = canonical_machine(restricted(inventory, devices)).inventory
    hosts = {host.name: f"host{number}" for number, host in enumerate(part.hosts)}
    ids = {device.id: f"d{number}" for number, device in enumerate(part.devices)}
    return replace(
        part,
        hosts=tuple(
            replace(
                host,
                name=hosts[host.name],
                pairs=tuple(Pair(a=ids[pair.a], b=ids[pair.b], link=pair.link) for pair in host.pairs),
            )
            for host in part.hosts
        ),
        devices=tuple(
            replace(device, id=ids[device.id], host=hosts[device.host], ordinal=ordinal, uuid=None)
            for device, ordinal in zip(part.devices, _ordinals(part.devices), strict=True)
        ),
    )


def _ordinals(devices: Sequence[Device]) -> Iterator[int]:
    """Yield the place of each accelerator among those of its host, 0 for a CPU."""
    counts: dict[str, int] = {}
    for device in devices:
        yield 0 if device.kind == "cpu" else counts.get(device.host, 0)
        counts[device.host] = counts.get(device.host, 0) + (device.kind == "cuda")


def template_names(templates: Sequence[Template], plans: Mapping[Template, Planned]) -> dict[Template, str]:
    """Return a name for each template: numbers of devices by type, and the batch."""
    names: dict[Template, str] = {}
    for template in templates:
        counts: dict[str, int] = {}
        for device in plans[template].plan.inventory.devices:
            counts[device.type] = counts.get(device.type, 0) + 1
        kinds = "-".join(f"{count}x{kind}" for kind, count in counts.items())
        name = "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{kinds}-b{template.batch}".lower())[:80]
        number = sum(known == name or known.startswith(f"{name}-n") for known in names.values())
        names[template] = f"{name}-n{number}" if number else name
    return names


def templates_of(names: Mapping[Template, str], plans: Mapping[Template, Planned]) -> tuple[FleetTemplate, ...]:
    """Return the templates in order of names."""
    records = (
        FleetTemplate(
            name=name,
            plan_sha256=digest(plans[template].plan),
            batch=template.batch,
            acceptance_ppm=plans[template].acceptance_ppm,
            microtokens_per_s=plans[template].speed,
        )
        for template, name in names.items()
    )
    return tuple(sorted(records, key=lambda record: record.name))


def replicas_of(
    parts: Parts,
    numbers: Mapping[Form, int],
    answer: Answer,
    running: Sequence[Running],
    wide: Mapping[int, tuple[int, ...]],
    names: Mapping[Template, str],
    speeds: Mapping[Template, int],
) -> tuple[Replica, ...]:
    """Return the replicas of an answer on the devices of the machine, the first hosts of a class first.

    ``numbers``: of parts by form; ``wide``: whole hosts by class of each part over several hosts; ``speeds``: of
    sequences in all places of a template.
    """
    left = [list(hosts) for hosts in parts.classes]
    modules = parts.machine.modules
    sets: dict[int, list[tuple[int, ...]]] = {}
    for own, count in zip(running, answer.replicas, strict=True):
        part = own.template.part
        for _ in range(count if part in wide else 0):
            taken = [left[c].pop(0) for c, hosts in enumerate(wide[part]) for _ in range(hosts)]
            whole = [device for host in taken for device in modules[host].devices]
            sets.setdefault(part, []).append(parts.form(whole)[1])
    for c, divided in enumerate(answer.hosts):
        for pattern, hosts in divided:
            for _ in range(hosts if pattern else 0):
                for part, subset in _realised(parts, numbers, modules[left[c].pop(0)].devices, pattern):
                    sets.setdefault(part, []).append(subset)
    listed = []
    for own, count, sequences in zip(running, answer.replicas, answer.sequences, strict=True):
        for number in range(count):
            devices = sets[own.template.part].pop(0)
            listed.append(
                Replica(
                    template=names[own.template],
                    devices=tuple(parts.machine.inventory.devices[device].id for device in devices),
                    sequences=sequences // count + (number < sequences % count),
                    microtokens_per_s=None if own.speed == speeds[own.template] else own.speed,
                )
            )
    return tuple(listed)


def _realised(
    parts: Parts, numbers: Mapping[Form, int], devices: Sequence[int], pattern: Sequence[int]
) -> list[tuple[int, tuple[int, ...]]]:
    """Return the sets of devices that a pattern divides a host into, each with the number of its part."""

    def rest_of(left: Sequence[int], pattern: Sequence[int]) -> list[tuple[int, tuple[int, ...]]] | None:
        if not pattern:
            return []
        *others, largest = pattern
        for subset in subsets_of(parts.module(left)):
            if not subset:
                continue
            form, ordered = parts.form(subset)
            if numbers.get(form) != largest:
                continue
            rest = rest_of([device for device in left if device not in subset], others)
            if rest is not None:
                return [*rest, (largest, ordered)]
        return None

    realised = rest_of(devices, pattern)
    assert realised is not None, "patterns are found by taking parts away from a host"
    return realised
