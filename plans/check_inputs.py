"""Checks of options and inventory of a plan, and the limits of these; ``check_model`` has those of model and drafter.

Every number from which the runtime computes a shape, an index or the length of a loop has an upper bound: sizes of
dimensions here and there, shares by these sizes and bytes by the memory of the devices in ``plans.check``.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

from plans.artifact import DEVICE_ID, DEVICE_UUID
from plans.check_model import MOST_SIZE, check_draft, check_model
from plans.cpu_times import fixed_times
from plans.roofs import is_below, roof_of, roofs_of
from plans.schema import (
    SCHEMA_MAJOR,
    Device,
    Inventory,
    Link,
    Options,
    Plan,
    ProductRates,
    Together,
    Tree,
)
from plans.step import fed_rows, steps, tree_pool
from plans.violations import Violation, bad, in_range

_SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_BATCH = 1024
"""Most sequences decoded at a time."""
MOST_CLIENTS = 1 << 20
"""Most running sequences, and most replicas, of a fleet."""
MOST_DEVICES = 4096
"""Most devices of an inventory."""
MOST_MASK_VALUES = 1 << 22
"""Most values of a mask of trees; a few of these are made in a step, and are not counted as buffers."""
ROUNDING_PPM = 100
"""Most by which rounding may make the difference between two predicted step times, in parts per million."""
MOST_STALL_S = 3600
"""Longest stall time-out, in s."""
MOST_TREE = {"total_token": 1024, "depth": 64, "top_k": 256}
"""Largest trees: larger ones cost more time than accepted tokens save, and their sizes would overflow."""


def check_facts(plan: Plan) -> tuple[Violation, ...]:
    """Violations in all that is not the placement: inputs, options, inventory, model, draft."""
    return (
        *_check_head(plan),
        *check_options(plan.options),
        *_check_custom(plan.options, plan.inventory),
        *check_inventory(plan.inventory),
        *check_model(plan),
        *check_draft(plan),
    )


def _check_head(plan: Plan) -> Iterator[Violation]:
    if plan.schema.partition(".")[0] != str(SCHEMA_MAJOR):
        yield bad("schema", plan.schema, f"{SCHEMA_MAJOR}.x")
    inputs = plan.inputs
    for name, value in (
        ("base_config_sha256", inputs.base_config_sha256),
        ("base_tensors_sha256", inputs.base_tensors_sha256),
    ):
        if not _SHA256.fullmatch(value):
            yield bad(f"inputs.{name}", value, "64 hexadecimal digits")
    for name, digest in (
        ("draft_config_sha256", inputs.draft_config_sha256),
        ("draft_tensors_sha256", inputs.draft_tensors_sha256),
    ):
        if plan.draft is None and digest is not None:
            yield bad(f"inputs.{name}", digest, "nothing, as there is no draft")
        if plan.draft is not None and (digest is None or not _SHA256.fullmatch(digest)):
            yield bad(f"inputs.{name}", digest, "64 hexadecimal digits")


def check_options(options: Options) -> Iterator[Violation]:
    """Yield what is wrong with options."""
    yield from in_range("options.batch", options.batch, 1, MOST_BATCH)
    yield from in_range("options.context", options.context, 1, MOST_SIZE)
    if not 1 <= options.prefill_chunk <= max(1, options.context):
        yield bad("options.prefill_chunk", options.prefill_chunk, f"from 1 to the context, {options.context}")
    yield from in_range("options.stall_timeout_s", options.stall_timeout_s, 1, MOST_STALL_S)
    if options.gap_ppm >= 10**6:
        yield bad("options.gap_ppm", options.gap_ppm, "less than 1000000")
    if options.within_ppm is not None and not 0 <= options.within_ppm <= 10**6:
        yield bad("options.within_ppm", options.within_ppm, "from 0 to 1000000, or null")
    yield from in_range("options.simplify_ppm", options.simplify_ppm, 0, 10**6)
    if options.max_devices is not None and options.max_devices < 1:
        yield bad("options.max_devices", options.max_devices, "at least 1, or null")
    if options.tree is not None:
        yield from _check_tree("options.tree", options.tree, options.batch)
    yield from _check_schedule(options)


def _check_schedule(options: Options) -> Iterator[Violation]:
    """Check the draft trees by number of running sequences; ``plans.check`` knows on which devices they run."""
    schedule, path = options.schedule, "options.schedule"
    if options.keep_draft and (schedule is None or options.tree is None):
        yield bad("options.keep_draft", "true", "nothing, as there is no schedule")
    if schedule is None:
        return
    numbers = [entry.sequences for entry in schedule]
    if numbers[:1] != [1] or numbers != sorted(set(numbers)) or numbers[-1] > options.batch:
        yield bad(path, numbers, f"ascending numbers of sequences from 1 to the batch, {options.batch}")
        return
    if options.tree is None:
        yield bad(path, f"{len(schedule)} trees", "nothing, as there is no draft")
    for i, (entry, (most, _)) in enumerate(zip(schedule, steps(options), strict=True)):
        if i and entry.tree == schedule[i - 1].tree:
            yield bad(f"{path}[{i}].tree", "the tree before it", "another one, or one range of both")
        if entry.tree is not None:
            yield from _check_tree(f"{path}[{i}].tree", entry.tree, most)


def _check_tree(path: str, tree: Tree, sequences: int) -> Iterator[Violation]:
    """Check a tree that is drafted for at most so many sequences."""
    for name, most in MOST_TREE.items():
        if getattr(tree, name) > most:
            yield bad(f"{path}.{name}", getattr(tree, name), f"at most {most}")
            return
    if (tree.kind == "static") != (tree.paths is not None):
        yield bad(f"{path}.paths", tree.paths, "nodes exactly where the kind is static")
    elif tree.paths is not None:
        yield from _check_paths(path, tree, tree.paths)
    elif tree.top_k < 1:
        yield bad(f"{path}.top_k", tree.top_k, "at least 1")
    elif tree.total_token < 2:
        yield bad(f"{path}.total_token", tree.total_token, "at least 2: the root and a drafted token")
    elif tree.total_token - 1 > tree_pool(tree):
        pool = f"the root and a pool of {tree.top_k} + {tree.depth} * {tree.top_k}^2 candidates"
        yield bad(f"{path}.total_token", tree.total_token, f"at most {tree_pool(tree) + 1}: {pool}")
    if 1 <= sequences <= MOST_BATCH and (values := mask_values(tree, sequences)) > MOST_MASK_VALUES:
        yield bad(path, f"masks of {values} values", f"at most {MOST_MASK_VALUES}: a smaller tree or batch")


def mask_values(tree: Tree, batch: int) -> int:
    """Return the values of the largest mask of the trees of a batch, verified or growing: a node sees its ancestors."""
    fed = fed_rows(tree)
    return max(batch * tree.total_token**2, batch * max((1, *fed)) * sum(fed), sum(fed) ** 2)


def _check_paths(path: str, tree: Tree, paths: tuple[tuple[int, ...], ...]) -> Iterator[Violation]:
    for problem in path_problems(paths):
        yield bad(f"{path}.paths", f"{len(paths)} nodes", problem)
        return
    follows = static_tree(paths)
    for name in ("total_token", "depth", "top_k"):
        if getattr(tree, name) != getattr(follows, name):
            expected = f"{getattr(follows, name)}, which follows from the paths"
            yield bad(f"{path}.{name}", getattr(tree, name), expected)


def path_problems(paths: tuple[tuple[int, ...], ...]) -> Iterator[str]:
    """Yield what is wrong with the nodes of a static tree."""
    if not paths:
        yield "at least one node"
    known: set[tuple[int, ...]] = {()}
    for path in paths:
        name = ".".join(map(str, path))
        if not path or min(path) < 0:
            yield f"{name}: ranks of at least 0"
        elif path in known:
            yield f"{name}: once"
        elif path[:-1] not in known:
            yield f"{name}: its parent before it"
        known.add(path)
    if list(paths) != sorted(paths, key=lambda path: (len(path), path)):
        yield "the shorter first, then in order"


def static_tree(paths: tuple[tuple[int, ...], ...]) -> Tree:
    """Return the static tree of these nodes."""
    return Tree(
        kind="static",
        total_token=1 + len(paths),
        depth=max(map(len, paths)) - 1,
        top_k=1 + max(max(path) for path in paths),
        paths=paths,
    )


class Accelerator(Protocol):
    """Accelerator of a device, as a plan and an inventory file both have it."""

    @property
    def id(self) -> str: ...

    @property
    def host(self) -> str: ...

    @property
    def ordinal(self) -> int: ...

    @property
    def uuid(self) -> str | None: ...


def uuid_conflicts(devices: Sequence[Accelerator]) -> dict[int, str]:
    """Return each device, by index, whose UUID an earlier device has for another accelerator, with that device's id.

    Parts of one GPU have its UUID and ordinal; a MIG slice is one device.
    """
    first: dict[str, Accelerator] = {}
    conflicts = {}
    for i, device in enumerate(devices):
        if device.uuid is None:
            continue
        other = first.setdefault(device.uuid, device)
        same = (other.host, other.ordinal) == (device.host, device.ordinal) and not is_slice(device.uuid)
        if other is not device and not same:
            conflicts[i] = other.id
    return conflicts


def is_slice(uuid: str | None) -> bool:
    """Return True for the UUID of a MIG slice."""
    return uuid is not None and uuid.startswith("MIG-")


def natural_key(text: str) -> tuple[tuple[tuple[str, int, str], ...], str]:
    """Return a sort key in which numbers count as numbers, whatever their length: gpu2 comes before gpu10."""
    parts = [(letters, digits.lstrip("0")) for letters, digits in re.findall(r"([^0-9]*)([0-9]*)", text)]
    return tuple((letters, len(digits), digits) for letters, digits in parts), text


def _check_custom(options: Options, inventory: Inventory) -> Iterator[Violation]:
    if (options.custom is None) == (options.strategy == "custom"):
        expected = "a device map" if options.custom is None else "nothing"
        lines = None if options.custom is None else f"{len(options.custom)} lines"
        yield bad("options.custom", lines, f"{expected}, as the strategy is {options.strategy}")
    modules = tuple(pin.module for pin in options.custom or ())
    if list(modules) != sorted(set(modules)):
        yield bad("options.custom", modules, "distinct modules in order")
    known = {device.id for device in inventory.devices}
    for i, pin in enumerate(options.custom or ()):
        if pin.device not in known:
            yield bad(f"options.custom[{i}].device", pin.device, "a device of the inventory")


def check_inventory(inventory: Inventory) -> Iterator[Violation]:
    """Yield what is wrong with an inventory."""
    names = tuple(host.name for host in inventory.hosts)
    if list(names) != sorted(set(names)):
        yield bad("inventory.hosts", names, "distinct names in order")
    if len(names) > 1 and inventory.network is None:
        yield bad("inventory.network", None, f"a link, as there are {len(names)} hosts")
    if inventory.network is not None:
        yield from _check_link("inventory.network", inventory.network)
    if len(inventory.devices) > MOST_DEVICES:
        yield bad("inventory.devices", f"{len(inventory.devices)} devices", f"at most {MOST_DEVICES}")
    at = {device.id: device.host for device in inventory.devices}
    for i, host in enumerate(inventory.hosts):
        yield from _check_link(f"inventory.hosts[{i}].link", host.link)
        for j, pair in enumerate(host.pairs):
            path = f"inventory.hosts[{i}].pairs[{j}]"
            yield from _check_link(f"{path}.link", pair.link)
            if pair.a == pair.b or {at.get(pair.a), at.get(pair.b)} != {host.name}:
                yield bad(path, f"{pair.a} and {pair.b}", f"two devices of host {host.name}")
    order = [(device.host, natural_key(device.id)) for device in inventory.devices]
    if order != sorted(order):
        yield bad("inventory.devices", tuple(at), "the order of hosts, then of ids")
    counts = Counter(device.id for device in inventory.devices)
    for i, other in uuid_conflicts(inventory.devices).items():
        yield bad(f"inventory.devices[{i}].uuid", inventory.devices[i].uuid, f"another one: {other} has it")
    for i, device in enumerate(inventory.devices):
        if counts[device.id] > 1:
            expected = f"another id: {counts[device.id]} devices have this one"
            yield bad(f"inventory.devices[{i}].id", device.id, expected)
        yield from _check_device(f"inventory.devices[{i}]", device, names)


def _check_link(path: str, link: Link) -> Iterator[Violation]:
    if link.bandwidth_bytes_per_s < 1:
        yield bad(f"{path}.bandwidth_bytes_per_s", link.bandwidth_bytes_per_s, "at least 1")
    if link.awake_ns is not None and link.awake_ns > link.latency_ns:
        yield bad(f"{path}.awake_ns", link.awake_ns, f"at most {link.latency_ns}, the latency to who sleeps")
    members, ns = 1, 0
    for i, own in enumerate(link.sums or ()):
        if own.members <= members:
            yield bad(f"{path}.sums[{i}].members", own.members, f"more than {members}")
        if own.ns < ns:
            yield bad(f"{path}.sums[{i}].ns", own.ns, f"at least {ns}, which fewer members take")
        members, ns = own.members, own.ns


def _check_device(path: str, device: Device, hosts: tuple[str, ...]) -> Iterator[Violation]:
    if not DEVICE_ID.fullmatch(device.id):
        yield bad(f"{path}.id", repr(device.id), "at most 64 letters, digits, '.', '_' and '-': it names a file")
    if device.host not in hosts:
        yield bad(f"{path}.host", device.host, f"one of {', '.join(hosts)}")
    if device.reserve_bytes > device.memory_bytes:
        yield bad(f"{path}.reserve_bytes", device.reserve_bytes, f"at most the memory, {device.memory_bytes}")
    if device.kind == "cpu" and device.ordinal != 0:
        yield bad(f"{path}.ordinal", device.ordinal, "0 for a CPU")
    if device.uuid is not None and (device.kind == "cpu" or not DEVICE_UUID.fullmatch(device.uuid)):
        yield bad(f"{path}.uuid", repr(device.uuid), "a UUID of the driver, like GPU-... or MIG-..., of a GPU")
    if device.compute_capability is not None and (device.kind == "cpu" or device.compute_capability < 50):
        expected = "nothing for a CPU" if device.kind == "cpu" else "at least 50, or nothing"
        yield bad(f"{path}.compute_capability", device.compute_capability, expected)
    for name in ("bandwidth_bytes_per_s", "flops_per_s"):
        if getattr(device, name) < 1:
            yield bad(f"{path}.{name}", getattr(device, name), "at least 1")
    yield from _check_products(path, device)
    yield from _check_scores(path, device)
    yield from _check_together(path, device)


def _check_products(path: str, own: Device | Together) -> Iterator[Violation]:
    """Check that the rates of products lead from the bandwidth to the rate along a convex curve."""
    if own.measured is None:
        return
    path, products = f"{path}.measured.products", own.measured.products
    if len(products) < 2:
        yield bad(path, f"{len(products)} products", "at least two")
        return
    ends, known = (
        (first.bandwidth_bytes_per_s, last.flops_per_s) for first, last in ((products[0], products[-1]), (own, own))
    )
    if ends != known:
        yield bad(path, f"first bandwidth and last rate {ends}", f"those of the device, {known}")
    for i, (one, other) in enumerate(pairwise(products)):
        p, q, divisor = roof_of(one, other)
        if min(p, q) < 0 or divisor <= 0 or min(other.bandwidth_bytes_per_s, one.flops_per_s) < 1:
            found = f"{other.bandwidth_bytes_per_s} bytes and {other.flops_per_s} operations per second"
            yield bad(f"{path}[{i + 1}]", found, "fewer bytes and more operations than of the one before")
            return
    roofs = roofs_of(own)
    for i, rates in enumerate(products):
        if not is_below(roofs, rates):
            yield bad(f"{path}[{i}]", "a product that others make slower", "products on a convex curve")


def _check_scores(path: str, own: Device | Together) -> Iterator[Violation]:
    """Check that times of attention are of rising dims of a head, none longer than in proportion to fewer dims."""
    scores = None if own.measured is None else own.measured.scores
    if scores is None:
        return
    path = f"{path}.measured.scores"
    if not scores:
        yield bad(path, "no time", "at least one, or nothing")
    dims, ns = 0, 0
    for i, time in enumerate(scores):
        if time.head_dim <= dims:
            yield bad(f"{path}[{i}].head_dim", time.head_dim, f"more than {dims}")
        elif time.ns < 1:
            yield bad(f"{path}[{i}].ns", time.ns, "at least 1")
        elif i and time.ns * dims > ns * time.head_dim:
            yield bad(f"{path}[{i}].ns", time.ns, f"at most {ns * time.head_dim // dims}, as {dims} dims take {ns}")
        dims, ns = time.head_dim, time.ns


def _check_scores_together(path: str, own: Together, fewer: Device | Together) -> Iterator[Violation]:
    """Check that attention takes no less time than with fewer devices."""
    if own.measured is None:
        return
    both = [None if rates.measured is None else rates.measured.scores for rates in (own, fewer)]
    dims = [[time.head_dim for time in scores or ()] for scores in both]
    if dims[0] != dims[1]:
        yield bad(f"{path}.measured.scores", f"heads of {dims[0]} dims", f"{dims[1]}, as with fewer devices")
        return
    for i, (time, least) in enumerate(zip(*(scores or () for scores in both), strict=True)):
        if time.ns < least.ns:
            yield bad(f"{path}.measured.scores[{i}].ns", time.ns, f"at least {least.ns}, the time with fewer devices")


def _check_together(path: str, device: Device) -> Iterator[Violation]:
    """Check that a device is no faster the more of them compute."""
    devices = 1
    fewer: Device | Together = device
    for i, own in enumerate(device.together or ()):
        where = f"{path}.together[{i}]"
        if own.devices <= devices:
            yield bad(f"{where}.devices", own.devices, f"more than {devices}")
        for name in ("bandwidth_bytes_per_s", "flops_per_s"):
            most = getattr(fewer, name)
            if not 1 <= getattr(own, name) <= most:
                yield bad(f"{where}.{name}", getattr(own, name), f"from 1 to {most}, the rate with fewer devices")
        yield from _check_products(where, own)
        yield from _check_scores(where, own)
        yield from _check_scores_together(where, own, fewer)
        both = ProductRates(bandwidth_bytes_per_s=own.bandwidth_bytes_per_s, flops_per_s=own.flops_per_s)
        if not all(is_below(roofs_of(fewer), rates) for rates in (own.measured.products if own.measured else (both,))):
            yield bad(f"{where}.measured.products", "a product that is faster", "none faster than with fewer devices")
        for (name, given_ns, ns), (_, _, least_ns) in zip(fixed_times(own), fixed_times(fewer), strict=True):
            if ns < least_ns:
                value = ns if given_ns is not None else f"nothing, which means {ns}"
                yield bad(f"{where}.{name}_ns", value, f"at least {least_ns}, the time with fewer devices")
        devices, fewer = own.devices, own
