"""Compares two fleets: replicas that changed, templates by name, and every other field."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plans.codec import encode
from plans.diff import Difference, compare, headline
from plans.fleet import MICRO, Fleet, Replica, load_fleet
from plans.schema import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedFleet:
    """A fleet with its plans by template."""

    fleet: Fleet
    plans: Mapping[str, Plan]


def load_with_plans(directory: Path) -> LoadedFleet:
    """Read a fleet with its plans; raise PlanError."""
    fleet, plans = load_fleet(directory)
    return LoadedFleet(fleet=fleet, plans=plans)


def fleet_differences(a: LoadedFleet, b: LoadedFleet) -> tuple[Difference, ...]:
    """Return all fields in which two fleets and their plans differ; none for equal fleets."""
    before, after = (encode(replace(one.fleet, replicas=())) for one in (a, b))
    found = list(compare("", before, after))
    for name in dict.fromkeys((*a.plans, *b.plans)):
        plans = [encode(one.plans[name]) if name in one.plans else None for one in (a, b)]
        if None not in plans:
            found += [replace(d, path=f"{name}: {d.path}") for d in compare("", *plans)]
    found += [
        Difference(kind="replicas", path=f"replicas[{'+'.join(devices)}]", before=old, after=new)
        for devices, old, new in _changed(a.fleet.replicas, b.fleet.replicas)
    ]
    return tuple(found)


def fleet_summary(a: LoadedFleet, b: LoadedFleet) -> tuple[str, ...]:
    """Return lines for people: tokens/s, replicas that changed, templates that changed, devices no longer in use, and
    every difference; none for equal fleets.
    """
    differences = fleet_differences(a, b)
    if not differences:
        return ()
    lines = [fleet_headline(a.fleet, b.fleet)]
    lines += [replica_line(*changed) for changed in _changed(a.fleet.replicas, b.fleet.replicas)]
    for name in a.plans.keys() & b.plans.keys():
        if a.plans[name] != b.plans[name]:
            lines.append(f"template {name}: {headline(a.plans[name], b.plans[name])}")
    return (*lines, *map(str, differences))


def fleet_headline(a: Fleet, b: Fleet) -> str:
    """Return tokens/s and replicas of two fleets in one line."""
    before, after = (fleet.proof.microtokens_per_s / MICRO for fleet in (a, b))
    change = f" ({(after - before) / max(1e-9, before):+.1%})" if before != after else ""
    return f"tokens/s {before:.1f} -> {after:.1f}{change}; replicas {len(a.replicas)} -> {len(b.replicas)}"


def replica_lines(a: Fleet, b: Fleet) -> tuple[str, ...]:
    """Return a line for each replica that changed."""
    return tuple(replica_line(*changed) for changed in _changed(a.replicas, b.replicas))


def replica_line(devices: Sequence[str], before: Any, after: Any) -> str:
    """Return a replica that changed, in words."""
    return f"replica on {' + '.join(devices)}: {_words(before)} -> {_words(after)}"


def _words(replica: Any) -> str:
    return "none" if replica is None else f"{replica['template']}, {replica['sequences']} sequences"


def _changed(a: Sequence[Replica], b: Sequence[Replica]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield the devices of each replica that is not the same in both, with what it is before and after."""
    before, after = ({replica.devices: encode(replica) for replica in replicas} for replicas in (a, b))
    for devices in dict.fromkeys((*before, *after)):
        old, new = before.get(devices), after.get(devices)
        if old != new:
            yield devices, old, new
