"""Links of an inventory: between the devices of a host, and between hosts."""

import dataclasses
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Literal

from planner.errors import InventoryError
from planner.hardware import units
from planner.hardware.catalog import catalog
from planner.hardware.inventory_fields import CLASS, CLASS_LETTERS, figure, mapping, nearest, rising, sequence, text
from planner.hardware.measured import parse_link
from planner.hardware.records import ListedDevice
from plans.check_inputs import natural_key
from plans.format import quote
from plans.schema import GroupSum, Host, Link, Pair

_LINK_FIELDS = ("class", "latency", "bandwidth", "sums", "awake", "measured")


def host_with_links(data: Any, path: str, name: str, devices: list[ListedDevice]) -> Host:
    """Return a host with its links; by default shared memory between CPUs alone, PCIe where there is an accelerator.

    A pair that is linked as the host's devices are is no pair: it is left out.
    """
    entries = {"pairs": data} if isinstance(data, list) else ({} if data is None else data)
    allowed = (*_LINK_FIELDS, "transport", "pairs")
    fields = mapping(entries, f"{path}.", allowed, "a mapping with class, or a sequence of pairs")
    all_cpu = all(device.kind == "cpu" for device in devices)
    base = {"class": "shm" if all_cpu else "pcie"} | {key: fields[key] for key in _LINK_FIELDS if key in fields}
    link = _link(base, path)
    pairs = _pairs(fields.get("pairs", []), f"{path}.pairs" if isinstance(data, dict) else path, devices)
    return Host(
        name=name,
        link=link,
        pairs=tuple(pair for pair in pairs if pair.link != link),
        transport=_transport(fields.get("transport", "auto"), f"{path}.transport"),
    )


def _transport(value: Any, path: str) -> Literal["auto", "gloo"]:
    if value == "auto":
        return "auto"
    if value == "gloo":
        return "gloo"
    raise InventoryError(f"{path}: found {quote(value)}, expected auto or gloo")


def _pairs(data: Any, path: str, devices: list[ListedDevice]) -> tuple[Pair, ...]:
    order = {device.id: natural_key(device.id) for device in devices}
    pairs: dict[tuple[str, str], Pair] = {}
    for position, entry in enumerate(sequence(data, path, "a sequence of pairs")):
        where = f"{path}[{position}]"
        fields = mapping(entry, f"{where}.", ("between", *_LINK_FIELDS), "a pair with between and class")
        a, b = _between(fields.get("between"), f"{where}.between", order)
        if (a, b) in pairs:
            raise InventoryError(f"{where}.between: the link of {a} and {b} is already given")
        link = _link({key: value for key, value in fields.items() if key != "between"}, where)
        pairs[a, b] = Pair(a=a, b=b, link=link)
    return tuple(pairs[key] for key in sorted(pairs, key=lambda key: (order[key[0]], order[key[1]])))


def _between(data: Any, path: str, order: Mapping[str, Any]) -> tuple[str, str]:
    if not isinstance(data, list) or len(data) != 2 or data[0] == data[1]:
        raise InventoryError(f"{path}: found {quote(data)}, expected the ids of two devices")
    for name in data:
        if type(name) is not str or name not in order:
            raise InventoryError(f"{path}: {quote(name)} is no device of this host{nearest(str(name), order)}")
    a, b = sorted(data, key=lambda name: order[name])
    return a, b


def network_link(data: Any, path: str, hosts: int) -> Link | None:
    """Return the link between the hosts, None for a single one."""
    if data is None:
        if hosts > 1:
            raise InventoryError(
                f"{path}: missing, expected the link between the {hosts} hosts, "
                "like {class: ethernet, bandwidth: 25 Gbit/s, latency: 20 us}"
            )
        return None
    link = _link(mapping(data, f"{path}.", _LINK_FIELDS, "a link with class, bandwidth and latency"), path)
    return link if hosts > 1 else None


def _sums(data: Any, path: str) -> tuple[GroupSum, ...]:
    """Return times of all-reduces by members; those of more members are no shorter."""
    sums: list[GroupSum] = []
    for position, entry in enumerate(sequence(data, path, "a sequence of times by members")):
        where = f"{path}[{position}]"
        fields = mapping(entry, f"{where}.", ("members", "time"), "a time with members")
        members = rising(fields, "members", sums[-1].members if sums else 1, where)
        ns = figure(fields, "time", units.DURATION, None, where)
        if sums and ns < sums[-1].ns:
            raise InventoryError(
                f"{where}.time: found {units.render(units.DURATION, ns)}, expected at least "
                f"{units.render(units.DURATION, sums[-1].ns)}, which fewer members take"
            )
        sums.append(GroupSum(members=members, ns=ns))
    return tuple(sums)


def _with_awake(link: Link, ns: int, path: str) -> Link:
    """Return a link with the latency to who is awake; raise InventoryError where that is longer than to who sleeps."""
    if ns > link.latency_ns:
        raise InventoryError(
            f"{path}: found {units.render(units.DURATION, ns)}, expected at most the latency, "
            f"{units.render(units.DURATION, link.latency_ns)}: give the lower one of both"
        )
    return dataclasses.replace(link, awake_ns=ns)


def _link(fields: Mapping[str, Any], path: str) -> Link:
    link_class = text(fields, "class", path, CLASS, CLASS_LETTERS)
    known = catalog().links.get(link_class)
    missing = [name for name in ("latency", "bandwidth") if name not in fields]
    if known is None and missing:
        raise InventoryError(
            f"{path}.class: {link_class!r} is not in the catalogue{nearest(link_class, catalog().links)}; "
            f"a link of another class gives latency and bandwidth itself; missing: {', '.join(missing)}"
        )
    link = Link(
        link_class=link_class,
        latency_ns=figure(fields, "latency", units.DURATION, known.latency_ns if known else None, path),
        bandwidth_bytes_per_s=figure(
            fields, "bandwidth", units.BANDWIDTH, known.bandwidth_bytes_per_s if known else None, path
        ),
    )
    if "sums" in fields:
        link = dataclasses.replace(link, sums=_sums(fields["sums"], f"{path}.sums"))
    if "awake" in fields:
        link = _with_awake(link, figure(fields, "awake", units.DURATION, None, path), f"{path}.awake")
    if "measured" not in fields:
        return link
    own = parse_link(fields["measured"], f"{path}.measured")
    bandwidth = link.bandwidth_bytes_per_s if own.bandwidth is None else own.bandwidth.value
    link = dataclasses.replace(link, latency_ns=own.latency.value, bandwidth_bytes_per_s=bandwidth, awake_ns=None)
    if own.awake is not None:
        link = _with_awake(link, own.awake.value, f"{path}.measured.awake.value")
    if not own.groups:
        return link
    # A larger group takes no less time: what seems so is noise.
    longest = accumulate((own.groups[members].value for members in sorted(own.groups)), max)
    sums = (GroupSum(members=members, ns=ns) for members, ns in zip(sorted(own.groups), longest, strict=True))
    return dataclasses.replace(link, sums=tuple(sums))
