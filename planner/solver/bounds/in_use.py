"""Lower bound of the step time by the number of hosts in use: how many of many equal hosts an answer can need.

For an answer that uses H hosts let h_s be the hosts of the site s, which stages enter (one host, or those of a group
over several), and h_b those of the option of block b. A host in use has a stage or a block, so H <= Σ h_s + Σ h_b, and
for every price w >= 0 of a host, in ns, and p_k of a layer of kind k

    step >= Σ_k L_k p_k + Σ_s (entry_s + layers_s - w h_s) + Σ_b (ns_b - w h_b) + w H + message (H - 1)

where layers_s is what the layers of a site take beyond p_k each, and entry_s its network hop, or for the first site
what it receives from the block ``first``. With p_k the least ns of a layer on any group, and w at most

    min over groups g of  (network_hop_g + min_k (ns_gk - p_k)) / h_g

no site but the first has a negative term, so all but the first may be left out. Memory plays no part.

Groups and options of the problem are bounded one by one; those over more hosts than it has, by :class:`WiderGroups`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.integers import PS_PER_NS
from planner.solver import limits
from planner.solver.problem import Axis, Block, Group, Problem

SHARES = (1.0, 0.5, 0.25, 0.0)
"""Prices of a host that are tried, as shares of the highest: blocks over many hosts may make a lower one better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WiderGroups:
    """Groups and options over more hosts than a problem has: none over as few hosts as ``most_hosts`` costs less."""

    most_hosts: int
    layer_ns: tuple[float, ...]
    """ns of a layer, per kind."""
    network_hop_ns: int
    first_ns: int
    """ns of receiving from the block ``first``."""
    blocks_ns: tuple[float, ...]
    """ns of each block with what it receives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostCount:
    """The bound: for each price of a host that was tried, ``fixed_ns + hosts · host_ns``."""

    lines: tuple[tuple[float, float], ...]
    """Pairs of ``fixed_ns`` and ``host_ns``."""

    def least_ns(self, hosts: int) -> float:
        """Return what every answer takes at least that uses so many hosts, or more."""
        return max(fixed + hosts * slope for fixed, slope in self.lines) * (1 - limits.MARGIN)

    def most_hosts(self, limit_ns: float, hosts: int) -> int:
        """Return the most hosts of an answer of at most ``limit_ns``: none has more than ``hosts``."""
        low, high = 0, hosts  # an answer may use ``low`` hosts or none
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.least_ns(middle) <= limit_ns else (low, middle - 1)
        return low


def host_count(problem: Problem, wider: Sequence[WiderGroups]) -> HostCount:
    """Return the bound of a problem and all that is over more hosts than it has."""
    stages = [*_stages(problem), *((w.most_hosts, w.layer_ns, w.network_hop_ns, w.first_ns) for w in wider)]
    kinds = range(len(problem.kinds))
    least = [min((layer_ns[k] for _, layer_ns, _, _ in stages), default=math.inf) for k in kinds]
    if math.inf in least:
        return HostCount(lines=((math.inf, 0.0),))
    more = [min(layer_ns[k] - least[k] for k in kinds) for _, layer_ns, _, _ in stages]
    highest = min((hop + ns) / hosts for (hosts, _, hop, _), ns in zip(stages, more, strict=True))
    blocks = [
        [*_options(block), *((wide.most_hosts, wide.blocks_ns[b]) for wide in wider)]
        for b, block in enumerate(problem.blocks)
    ]
    message_ns, lines = problem.network_message_ns, []
    for share in SHARES:
        price = share * highest
        first = min(ns + extra - price * hosts for (hosts, _, _, ns), extra in zip(stages, more, strict=True))
        placed = sum(min(ns - price * hosts for hosts, ns in options) for options in blocks)
        all_layers = sum(problem.layers_of(k) * least[k] for k in kinds)
        lines.append((all_layers + first + placed - message_ns, price + message_ns))
    return HostCount(lines=tuple(lines))


def _stages(problem: Problem) -> Iterator[tuple[int, tuple[float, ...], int, int]]:
    """Yield the hosts of each group that runs any layer, its ns of a layer per kind, its hop and first message."""
    host_of = problem.host_of
    for group in problem.groups:
        if any(group.splits):
            hosts = {host_of[device] for device in group.devices}
            yield len(hosts), _layer_ns(problem, group), group.network_hop_ns, group.first.same_ns


def _layer_ns(problem: Problem, group: Group) -> tuple[float, ...]:
    """Return the least ns of a layer of each kind on a group, infinite where it runs none, in fractions of units."""
    return tuple(
        min((split.ns for split in splits), default=math.inf)
        + divided_ns(kind.units, [kind.unit_ps[device] for device in group.devices])
        for kind, splits in zip(problem.kinds, group.splits, strict=True)
    )


def _options(block: Block) -> Iterator[tuple[int, float]]:
    """Yield the hosts of each option of a block, and its least ns with what it receives."""
    for option in block.options:
        ns = option.receive.same_ns + min(split.ns for split in option.splits)
        yield len(option.sites), ns + sum(_axis_ns(axis, option.devices) for axis in block.axes)


def _axis_ns(axis: Axis, devices: Sequence[int]) -> float:
    return divided_ns(axis.count, [axis.each_ps[device] for device in devices])


def divided_ns(pieces: int, piece_ps: Sequence[int]) -> float:
    """Return the least ns of the slowest member when so many pieces are divided in fractions."""
    if not all(piece_ps):
        return 0.0
    return pieces / PS_PER_NS / math.fsum(1 / ps for ps in piece_ps)
