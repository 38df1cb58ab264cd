"""Fleets: an inventory divided into replicas, each of which runs a plan; ``fleet.yaml`` and what is wrong with one.

A fleet's directory has ``fleet.yaml``, the configs that it was planned from, and a directory for each template, which
is that of a plan (``plans/FORMAT.md``, Fleets). Devices of a template's plan are named ``d0``, ``d1``, …; each replica
lists the devices that take their place.
"""

import errno
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from plans.check import InvalidPlanError, load
from plans.check_inputs import MOST_BATCH, MOST_CLIENTS, check_inventory, check_options
from plans.codec import FLEET_FILE, decode, digest, encode, read_document
from plans.schema import Device, Draft, Inputs, Inventory, Link, Options, Plan, PlanError
from plans.strict_yaml import dump_yaml, load_yaml
from plans.violations import Violation, bad, in_range

FLEET_MAJOR, FLEET_MINOR = 1, 1
MICRO = 1_000_000
"""Millionths of a token in a token."""
NS_PER_S = 1_000_000_000
MOST_MICROTOKENS = 10**15
"""Largest speed that is asked for."""
_TEMPLATE = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetRequest:
    """What was asked for, with every default written out."""

    options: Options
    """Options of every replica. ``batch``: the least of ``batches``; ``tree``: of no meaning where trees are chosen."""
    tree_chosen: bool
    """The tree, or none, is chosen for each template by expected tokens per second."""
    schedule: bool
    """Plans have trees for fewer sequences than their batch, too."""
    keep_draft: bool
    """A draft is kept where plain decoding is faster."""
    batches: tuple[int, ...]
    """Numbers of places for sequences that a replica may have, ascending."""
    stall_timeout_s: int | None
    """Seconds without progress that end a run; None: what the slowest device of a template needs."""
    replicas: int | None
    """Replicas asked for; None: any number."""
    clients: int | None
    """Sequences that run at once on all replicas together; None: one in every place."""
    min_microtokens_per_s: int
    """Least speed of every sequence, in millionths of a token per second."""
    gap_ppm: int
    """Accepted relative distance of the speed from its bound, in parts per million; 0: proven optimal."""
    solver_limit: float
    """Work of the solver for each template, past which it is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetTemplate:
    """A plan that one or more replicas run."""

    name: str
    """Directory of the plan, in that of the fleet."""
    plan_sha256: str
    """Digest of the plan."""
    batch: int
    """Places for sequences: the plan's batch."""
    acceptance_ppm: int
    """Expected tokens of a step and sequence, in parts per million."""
    microtokens_per_s: int
    """Speed of each sequence: acceptance_ppm * 10^9 / step in ns, rounded down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """Devices that run a template's plan."""

    template: str
    devices: tuple[str, ...]
    """Devices in the place of the plan's, in the order of the plan's inventory."""
    sequences: int
    """Running sequences that it has at the load asked for."""
    microtokens_per_s: int | None = None
    """Speed of each of them; None: that of the template, as if all its places were taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetProof:
    """What is proven of the division."""

    microtokens_per_s: int
    """Expected tokens of all sequences together."""
    bound_microtokens_per_s: int
    """No division of the family has more; as many, but for templates whose plan was not proven within the limit."""
    any_microtokens_per_s: int
    """No division at all has more, of this family or another, by bandwidth, arithmetic and fixed work alone."""
    most_hosts: int
    """The family: a replica is on devices of one host, or on at most so many whole hosts."""
    parts: int
    """Parts of the machine that were considered, but for names."""
    solved: int
    """Templates (a part with a batch) whose plan was solved; the others are excluded by bounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """A division of an inventory into replicas."""

    fleet: str
    """Version of the format."""
    inputs: Inputs
    draft: Draft | None
    """The drafter given; None: plain decoding. A template may do without it."""
    request: FleetRequest
    inventory: Inventory
    templates: tuple[FleetTemplate, ...]
    """In order of names."""
    replicas: tuple[Replica, ...]
    """In the order of templates, then of their devices in the inventory."""
    unused: tuple[str, ...]
    """Devices of no replica, in the order of the inventory."""
    proof: FleetProof

    def template(self, name: str) -> FleetTemplate:
        """Return a template by its name."""
        return next(template for template in self.templates if template.name == name)

    def speed(self, replica: Replica) -> int:
        """Return the speed of each sequence of a replica, in millionths of a token per second."""
        own = replica.microtokens_per_s
        return self.template(replica.template).microtokens_per_s if own is None else own


def is_fleet(directory: Path) -> bool:
    """Tell whether a directory has a ``fleet.yaml``."""
    return (directory / FLEET_FILE).is_file()


def dump_fleet(fleet: Fleet) -> str:
    """Return the canonical text of a fleet."""
    return dump_yaml(encode(fleet))


def parse_fleet(text: str | bytes, where: str) -> Fleet:
    """Parse a fleet; raise PlanError naming ``where`` and the path to the datum."""
    data = load_yaml(text, where)
    version = data.get("fleet") if isinstance(data, dict) else None
    if isinstance(version, str) and version.partition(".")[0] != str(FLEET_MAJOR):
        raise PlanError(f"{where}: fleet: found version {version}, this program reads {FLEET_MAJOR}.x")
    return decode(Fleet, data, where)


def load_fleet(directory: Path) -> tuple[Fleet, dict[str, Plan]]:
    """Return a fleet and its plans by template; raise PlanError where one cannot be read, or contradicts the others."""
    file = directory / FLEET_FILE
    try:
        raw = read_document(file, inside=True)
    except OSError as error:
        reason = "no such file" if error.errno == errno.ENOENT else error.strerror
        raise PlanError(f"{file}: cannot read: {reason}") from error
    fleet = parse_fleet(raw, str(file))
    if violations := tuple(_names(fleet)):
        raise InvalidPlanError(str(file), violations)
    plans = {template.name: load(directory / template.name) for template in fleet.templates}
    if violations := check_fleet(fleet, plans):
        raise InvalidPlanError(str(file), violations)
    return fleet, plans


def is_canonical(directory: Path, fleet: Fleet) -> bool:
    """Tell whether ``fleet.yaml`` has exactly the bytes of its canonical text."""
    return read_document(directory / FLEET_FILE, inside=True) == dump_fleet(fleet).encode()


def microtokens_per_s(acceptance_ppm: int, step_ns: int) -> int:
    """Return the speed of a sequence in millionths of a token per second, rounded down."""
    return acceptance_ppm * NS_PER_S // max(1, step_ns)


# ---- checks ----


def check_fleet(fleet: Fleet, plans: Mapping[str, Plan]) -> tuple[Violation, ...]:
    """Return all data of a fleet that contradict the rest, or the plans of its templates."""
    facts = (*_names(fleet), *check_inventory(fleet.inventory), *_check_request(fleet.request))
    if facts:
        return facts
    return (*_check_templates(fleet, plans), *_check_replicas(fleet, plans), *_check_totals(fleet))


def _names(fleet: Fleet) -> Iterator[Violation]:
    names = tuple(template.name for template in fleet.templates)
    if not names:
        yield bad("templates", "none", "at least one")
    if list(names) != sorted(set(names)):
        yield bad("templates", names, "distinct names in order")
    for t, name in enumerate(names):
        if not _TEMPLATE.fullmatch(name):
            yield bad(f"templates[{t}].name", repr(name), "lower-case letters, digits and '-': it names a directory")


def _check_request(request: FleetRequest) -> Iterator[Violation]:
    yield from check_options(request.options)
    if not request.batches or list(request.batches) != sorted(set(request.batches)):
        yield bad("request.batches", request.batches, "distinct numbers in ascending order")
        return
    yield from in_range("request.batches[0]", request.batches[0], 1, MOST_BATCH)
    yield from in_range(f"request.batches[{len(request.batches) - 1}]", request.batches[-1], 1, MOST_BATCH)
    if request.options.batch != request.batches[0]:
        yield bad("request.options.batch", request.options.batch, f"{request.batches[0]}, the least of the batches")
    for name, most in (("replicas", MOST_CLIENTS), ("clients", MOST_CLIENTS)):
        value = getattr(request, name)
        if value is not None:
            yield from in_range(f"request.{name}", value, 1, most)
    yield from in_range("request.min_microtokens_per_s", request.min_microtokens_per_s, 0, MOST_MICROTOKENS)


def _check_templates(fleet: Fleet, plans: Mapping[str, Plan]) -> Iterator[Violation]:
    used = {replica.template for replica in fleet.replicas}
    for t, template in enumerate(fleet.templates):
        path, plan = f"templates[{t}]", plans[template.name]
        if template.name not in used:
            yield bad(f"{path}.name", template.name, "the template of a replica")
        if template.plan_sha256 != digest(plan):
            yield bad(f"{path}.plan_sha256", template.plan_sha256, f"{digest(plan)}, that of {template.name}/plan.yaml")
        if template.batch != plan.options.batch or template.batch not in fleet.request.batches:
            yield bad(f"{path}.batch", template.batch, f"{plan.options.batch}, one of the request's batches")
        if plan.speculation is not None and plan.speculation.acceptance_ppm != template.acceptance_ppm:
            yield bad(f"{path}.acceptance_ppm", template.acceptance_ppm, plan.speculation.acceptance_ppm)
        speed = microtokens_per_s(template.acceptance_ppm, plan.proof.objective_ns)
        if template.microtokens_per_s != speed:
            yield bad(f"{path}.microtokens_per_s", template.microtokens_per_s, speed)


def _check_replicas(fleet: Fleet, plans: Mapping[str, Plan]) -> Iterator[Violation]:
    known = {device.id: device for device in fleet.inventory.devices}
    taken: dict[str, int] = {}
    for r, replica in enumerate(fleet.replicas):
        path = f"replicas[{r}]"
        if replica.template not in plans:
            yield bad(f"{path}.template", replica.template, "the name of a template")
            continue
        plan, unknown = plans[replica.template], [name for name in replica.devices if name not in known]
        for name in unknown:
            yield bad(f"{path}.devices", name, "a device of the inventory")
        for name in replica.devices:
            if taken.setdefault(name, r) != r:
                yield bad(f"{path}.devices", name, f"devices of no other replica: replicas[{taken[name]}] has it")
        if len(set(replica.devices)) != len(replica.devices):
            yield bad(f"{path}.devices", replica.devices, "distinct devices")
        elif len(replica.devices) != len(plan.inventory.devices):
            yield bad(f"{path}.devices", replica.devices, f"{len(plan.inventory.devices)} devices, as the plan has")
        elif not unknown:
            yield from _check_like(f"{path}.devices", [known[n] for n in replica.devices], fleet.inventory, plan)
        yield from in_range(f"{path}.sequences", replica.sequences, 1, plan.options.batch)
        yield from _check_speed(f"{path}.microtokens_per_s", fleet, replica, plan)
        if fleet.request.clients is None and replica.sequences != plan.options.batch:
            yield bad(f"{path}.sequences", replica.sequences, f"{plan.options.batch}, one in every place")
    unused = tuple(name for name in known if name not in taken)
    if fleet.unused != unused:
        yield bad("unused", fleet.unused, unused)


def _check_speed(path: str, fleet: Fleet, replica: Replica, plan: Plan) -> Iterator[Violation]:
    """Yield where a replica's speed is one of all places though some are free, or the other way round, or too low."""
    own, least, speed = replica.microtokens_per_s, fleet.request.min_microtokens_per_s, fleet.speed(replica)
    if own is not None and replica.sequences == plan.options.batch:
        yield bad(path, own, "none: all places are taken, so that it is the template's")
    if own is not None and own == fleet.template(replica.template).microtokens_per_s:
        yield bad(path, own, "none, or another than the template's")
    if not max(1, least) <= speed <= MOST_MICROTOKENS:
        yield bad(path, speed, f"at least {least}, as was asked for" if least else f"1 to {MOST_MICROTOKENS}")


def _check_like(path: str, devices: list[Device], inventory: Inventory, plan: Plan) -> Iterator[Violation]:
    """Yield where devices, or the links between them, are not like those of the plan in whose place they are."""
    for device, planned in zip(devices, plan.inventory.devices, strict=True):
        if _figures(device) != _figures(planned):
            yield bad(path, device.id, f"a device like {planned.id} of the plan, {planned.type}")
            return
    own, theirs = _Links(inventory), _Links(plan.inventory)
    for i, (device, planned) in enumerate(zip(devices, plan.inventory.devices, strict=True)):
        for other, second in zip(devices[:i], plan.inventory.devices[:i], strict=True):
            if (device.host == other.host) != (planned.host == second.host):
                yield bad(path, f"{other.id} and {device.id}", "devices of one host exactly where the plan's are")
                return
            if own.between(device, other) != theirs.between(planned, second):
                yield bad(path, f"{other.id} and {device.id}", f"linked as {second.id} and {planned.id} of the plan")
                return


def _figures(device: Device) -> tuple[object, ...]:
    return (
        *(device.type, device.kind, device.reported_name, device.memory_bytes, device.reserve_bytes),
        *(device.bandwidth_bytes_per_s, device.flops_per_s, device.overhead_ns, device.compute_capability),
        *(device.pass_ns, device.table_ns, device.measured, device.together),
    )


class _Links:
    """Figures of the links between any two devices of an inventory."""

    def __init__(self, inventory: Inventory) -> None:
        self._hosts = {host.name: host.link for host in inventory.hosts}
        self._pairs = {frozenset((p.a, p.b)): p.link for host in inventory.hosts for p in host.pairs}
        self._network = inventory.network

    def between(self, one: Device, other: Device) -> tuple[object, ...] | None:
        """Return latency, bandwidth and times of sums between two devices."""
        usual = self._hosts[one.host] if one.host == other.host else self._network
        link: Link | None = self._pairs.get(frozenset((one.id, other.id)), usual)
        return None if link is None else (link.latency_ns, link.bandwidth_bytes_per_s, link.sums, link.awake_ns)


def _check_totals(fleet: Fleet) -> Iterator[Violation]:
    request, counts = fleet.request, Counter(replica.template for replica in fleet.replicas)
    if request.replicas is not None and len(fleet.replicas) != request.replicas:
        yield bad("replicas", f"{len(fleet.replicas)} replicas", f"{request.replicas}, as was asked for")
    sequences = sum(replica.sequences for replica in fleet.replicas)
    if request.clients is not None and sequences != request.clients:
        yield bad("replicas", f"{sequences} sequences", f"{request.clients}, as was asked for")
    if counts.keys() <= {template.name for template in fleet.templates}:
        total = sum(fleet.speed(replica) * replica.sequences for replica in fleet.replicas)
        if fleet.proof.microtokens_per_s != total:
            yield bad("proof.microtokens_per_s", fleet.proof.microtokens_per_s, total)
        for name in ("bound_microtokens_per_s", "any_microtokens_per_s"):
            if getattr(fleet.proof, name) < total:
                yield bad(f"proof.{name}", getattr(fleet.proof, name), f"at least {total}")
