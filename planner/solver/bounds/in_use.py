"""Lower bound of the step time by the numbers of hosts and devices in use.

It says how many of many equal hosts an answer can need, and how few devices a fast one can do with. Memory plays no
part. Parts of an answer are its stages and blocks; one over several hosts is *wide*.

In an answer that uses at least H hosts and at most D devices a part over h hosts has at most D - max(0, H - h) devices,
since each of the other hosts has one in use: other groups and options are left out. With H > 1 there are three cases:

* no part is wide: the chain of parts goes to another host H - 1 times at least, and receives as from afar each time
* some block is wide, and no stage: a wide part and one that is not are on different devices, so that one receives
* some stage is wide

In the latter two, let h_s be the hosts of the site s, which stages enter, and h_b those of block b. A host in use has a
stage or a block, so H <= Σ h_s + Σ h_b, and for every price w >= 0 of a host, in ns, and p_k of a layer of kind k

    step >= Σ_k L_k p_k + Σ_s (entry_s + layers_s - w h_s) + Σ_b (ns_b - w h_b) + w H + message (H - 1)

where layers_s is what the layers of a site take beyond p_k each, and entry_s its network hop, or for the first site
what it receives from the block ``first``. With p_k the least ns of a layer on any group, and w at most

    min over groups g of  (network_hop_g + min_k (ns_gk - p_k)) / h_g

no site but the first has a negative term, so all others may be left out, but for a wide one of which the case tells.
The block after the last stage receives as from other devices unless it is on as many hosts and devices as that stage.

Groups and options of the problem are bounded one by one; those over more hosts than it has, by :class:`WiderGroups`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from planner.integers import PS_PER_NS
from planner.solver import limits
from planner.solver.problem import Block, Group, Problem, Receive

SHARES = (1.0, 0.5, 0.25, 0.0)
"""Prices of a host that are tried, as shares of the highest: blocks over many hosts may make a lower one better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WiderGroups:
    """Groups and options over more hosts than a problem has: none over as few hosts as ``most_hosts`` costs less."""

    most_hosts: int
    least_devices: int
    layer_ns: tuple[float, ...]
    """ns of a layer, per kind."""
    network_hop_ns: int
    first: Receive
    """From the block ``first``."""
    blocks: tuple[tuple[float, Receive], ...]
    """ns of each block, and what it takes to receive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A group as a stage, or an option of a block."""

    hosts: int
    devices: int
    receive: Receive
    """As a block, or as the first stage."""
    ns: float = 0.0
    """As a block, without what it receives."""
    layer_ns: tuple[float, ...] = ()
    """As a stage, per kind."""
    hop_ns: int = 0
    """As a stage, from another site."""

    @property
    def is_wide(self) -> bool:
        """It is over several hosts."""
        return self.hosts > 1


@dataclass(frozen=True, kw_only=True, slots=True)
class InUse:
    """The bound, by hosts and devices."""

    layers: tuple[int, ...]
    """Per kind."""
    message_ns: int
    """Time of telling each host in use but the first."""
    stages: tuple[Part, ...]
    blocks: tuple[tuple[Part, ...], ...]

    def least_ns(self, hosts: int, devices: float = math.inf) -> float:
        """Return what every answer takes at least that uses so many hosts, or more, and so many devices, or fewer."""
        stages, *blocks = (
            [part for part in parts if part.devices + max(0, hosts - part.hosts) <= devices]
            for parts in (self.stages, *self.blocks)
        )
        all_stages = _stages(self.layers, stages)
        if hosts > 1:
            near = _stages(self.layers, [part for part in stages if not part.is_wide])
            cases = (_no_wide_ns, near), (_wide_blocks_ns, near), (_wide_stage_ns, all_stages)
            least = min(case(hosts, self.message_ns, of_case, blocks) for case, of_case in cases)
        else:
            least = all_stages.layers_ns + _least(all_stages.parts) + sum(map(_least, blocks))
        return least * (1 - limits.MARGIN)

    def block_ns(self, number: int) -> float:
        """Return what a block takes at least in any answer, with what it receives."""
        return _least(self.blocks[number]) * (1 - limits.MARGIN)

    def most_hosts(self, limit_ns: float, hosts: int, devices: float = math.inf) -> int:
        """Return the most hosts of an answer of at most ``limit_ns`` and so many devices: none has more than ``hosts``.

        0 where there is no such answer.
        """
        low, high = 0, hosts  # an answer may use ``low`` hosts or none
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.least_ns(middle, devices) <= limit_ns else (low, middle - 1)
        return low

    def fewest_devices(self, limit_ns: float, devices: int) -> int:
        """Return a number, at most ``devices``: no answer of at most ``limit_ns`` has fewer devices in use."""
        while devices > 1 and self.least_ns(1, devices - 1) <= limit_ns:
            devices -= 1
        return devices


def in_use(problem: Problem, wider: Sequence[WiderGroups]) -> InUse:
    """Return the bound of a problem and all that is over more hosts than it has."""
    stages, *blocks = _stage_parts(problem), *map(_block_parts, problem.blocks)
    for wide in wider:
        one = Part(hosts=wide.most_hosts, devices=wide.least_devices, receive=wide.first)
        stages.append(replace(one, layer_ns=wide.layer_ns, hop_ns=wide.network_hop_ns))
        for parts, (ns, receive) in zip(blocks, wide.blocks, strict=True):
            parts.append(replace(one, ns=ns, receive=receive))
    return InUse(
        layers=tuple(map(problem.layers_of, range(len(problem.kinds)))),
        message_ns=problem.network_message_ns,
        stages=tuple(dict.fromkeys(stages)),
        blocks=tuple(tuple(dict.fromkeys(parts)) for parts in blocks),
    )


# ---- cases ----


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stages:
    """The groups that may run a stage in one of the cases."""

    layers_ns: float
    """Time of all layers, each where it takes least; infinite where a kind is run by no group."""
    parts: Sequence[Part]
    """Their ``ns``: what the layers of a stage take beyond that, at least."""

    @property
    def prices(self) -> list[float]:
        """Prices of a host in ns at which no stage in a site of its own is worth more than it costs."""
        highest = min(((part.hop_ns + part.ns) / part.hosts for part in self.parts), default=0.0)
        return [share * highest for share in SHARES]


def _stages(layers: Sequence[int], parts: Sequence[Part]) -> _Stages:
    least = [min((part.layer_ns[k] for part in parts), default=math.inf) for k in range(len(layers))]
    if math.inf in least:
        return _Stages(layers_ns=math.inf, parts=())
    beyond = [min(ns - low for ns, low in zip(part.layer_ns, least, strict=True)) for part in parts]
    return _Stages(
        layers_ns=sum(count * ns for count, ns in zip(layers, least, strict=True)),
        parts=[replace(part, ns=ns) for part, ns in zip(parts, beyond, strict=True)],
    )


def _least(parts: Iterable[Part], price: float = 0.0, *, apart: bool = False) -> float:
    """Return the least ns of a part with what it receives, less the price of its hosts.

    ``apart``: it receives from other devices than its own.
    """
    receives = ((part, part.receive.inside_ns if apart else part.receive.same_ns) for part in parts)
    return min((part.ns + ns - price * part.hosts for part, ns in receives), default=math.inf)


def _no_wide_ns(hosts: int, message_ns: int, near: _Stages, blocks: Sequence[Sequence[Part]]) -> float:
    """Bound the answers of which no part is wide."""
    blocks = [[part for part in parts if not part.is_wide] for parts in blocks]
    receivers = [*near.parts, *(part for parts in blocks[1:] for part in parts)]
    # beyond what is received from the same devices, which is in the least of each part
    beyond = [part.receive.far_ns - part.receive.same_ns for part in receivers]
    afar_ns = min([*beyond, *(part.hop_ns for part in near.parts)], default=0)
    return near.layers_ns + _least(near.parts) + sum(map(_least, blocks)) + (hosts - 1) * (message_ns + afar_ns)


def _wide_blocks_ns(hosts: int, message_ns: int, near: _Stages, blocks: Sequence[Sequence[Part]]) -> float:
    """Bound the answers of which some block is wide, and no stage."""
    by_width = [{wide: [part for part in parts if part.is_wide == wide] for wide in (False, True)} for parts in blocks]

    def least(price: float, first: bool, last: bool, *tail: bool) -> float:
        """Return the least by which of the blocks are wide."""
        ns = _least(by_width[0][first], price) + _least(near.parts, price, apart=first)
        ns += _least(by_width[1][last], price, apart=last)
        return ns + sum(_least(by_width[2][wide], price, apart=wide != last) for wide in tail)

    widths = [wide for wide in product((False, True), repeat=len(blocks)) if any(wide)]
    priced = (price * hosts + min(least(price, *wide) for wide in widths) for price in near.prices)
    return near.layers_ns + max(priced) + (hosts - 1) * message_ns


def _wide_stage_ns(hosts: int, message_ns: int, stages: _Stages, blocks: Sequence[Sequence[Part]]) -> float:
    """Bound the answers of which some stage is wide: the only one, the first of several, or another."""
    wide = [part for part in stages.parts if part.is_wide]
    first, last, *tail = blocks

    def least(price: float) -> float:
        alone = _by_places(wide, price, [part.receive.same_ns for part in wide])
        later = _by_places(wide, price, [part.hop_ns for part in wide])
        only = min((ns + _after(last, price, {places: 0.0}, 0.0) for places, ns in alone.items()), default=math.inf)
        first_wide = _least(wide, price) + _after(last, price, later, 0.0)
        another_wide = _least(stages.parts, price) + _after(last, price, later, min(later.values(), default=math.inf))
        beside = _least(first, price) + sum(_least(parts, price) for parts in tail)
        return min(only, first_wide, another_wide) + beside

    return stages.layers_ns + max(price * hosts + least(price) for price in stages.prices) + (hosts - 1) * message_ns


def _by_places(wide: Sequence[Part], price: float, entry_ns: Iterable[int]) -> dict[tuple[int, int], float]:
    """Return the least ns of stages by hosts and devices, with their entries and less the price of their hosts."""
    least: dict[tuple[int, int], float] = {}
    for part, ns in zip(wide, entry_ns, strict=True):
        places = part.hosts, part.devices
        least[places] = min(part.ns + ns - price * part.hosts, least.get(places, math.inf))
    return least


def _after(last: Sequence[Part], price: float, stage_ns: Mapping[tuple[int, int], float], any_ns: float) -> float:
    """Return the least ns of the block after the last stage, with what that block receives, and of a wide stage.

    A wide block on the devices of the last stage has as many hosts and devices as a wide stage, which is then that one.
    ``stage_ns``: ns of the last stage by hosts and devices; ``any_ns``: what some wide stage takes, whichever is last.
    """
    least = math.inf
    for part in last:
        matching_ns = max(any_ns, stage_ns.get((part.hosts, part.devices), math.inf)) if part.is_wide else any_ns
        received_ns = min(part.receive.same_ns + matching_ns, part.receive.inside_ns + any_ns)
        least = min(least, part.ns + received_ns - price * part.hosts)
    return least


# ---- parts of a problem ----


def _stage_parts(problem: Problem) -> list[Part]:
    """Return the groups that run any layer."""
    host_of = problem.host_of
    return [
        Part(
            hosts=len({host_of[device] for device in group.devices}),
            devices=len(group.devices),
            receive=group.first,
            layer_ns=_layer_ns(problem, group),
            hop_ns=group.network_hop_ns,
        )
        for group in problem.groups
        if any(group.splits)
    ]


def _layer_ns(problem: Problem, group: Group) -> tuple[float, ...]:
    """Return the least ns of a layer of each kind on a group, infinite where it runs none, in fractions of units."""
    return tuple(
        min((split.ns for split in splits), default=math.inf) + divided_ns(kind.units, group.unit_ps(k, kind))
        for k, (kind, splits) in enumerate(zip(problem.kinds, group.splits, strict=True))
    )


def _block_parts(block: Block) -> list[Part]:
    return [
        Part(
            hosts=len(option.sites),
            devices=len(option.devices),
            receive=option.receive,
            ns=min(split.ns for split in option.splits)
            + sum(divided_ns(axis.count, option.piece_ps(a, axis)) for a, axis in enumerate(block.axes)),
        )
        for option in block.options
    ]


def divided_ns(pieces: int, piece_ps: Sequence[int]) -> float:
    """Return the least ns of the slowest member when so many pieces are divided in fractions."""
    if not all(piece_ps):
        return 0.0
    return pieces / PS_PER_NS / math.fsum(1 / ps for ps in piece_ps)
