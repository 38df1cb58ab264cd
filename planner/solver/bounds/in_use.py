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
what it receives from the block ``first``; besides, the devices of each stage are told what was accepted. With p_k the
least ns of a layer on any group, and w at most

    min over groups g of  (network_hop_g + min_k (ns_gk - p_k)) / h_g

no site but the first has a negative term, so all others may be left out, but for a wide one of which the case tells.
A stage that is the only one has all layers, else one at least. A part receives as from other devices unless it is on as
many hosts and devices as what it receives from.

Groups and options of the problem are bounded one by one; those that it leaves out, which are over more hosts than it
has of equal ones, by :class:`WiderGroups`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from planner.integers import PS_PER_NS, rounds
from planner.solver import limits
from planner.solver.problem import Block, Group, Problem, Receive

SHARES = (1.0, 0.5, 0.25, 0.0)
"""Prices of a host that are tried, as shares of the highest: blocks over many hosts may make a lower one better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WiderGroups:
    """Groups and options that a problem leaves out: none over as few hosts as ``most_hosts`` costs less."""

    most_hosts: int
    least_devices: int
    layer_ns: tuple[float, ...]
    """ns of a layer, per kind."""
    network_hop_ns: int
    told_ns: int
    """As ``Part.told_ns``."""
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
    told_ns: int = 0
    """As a stage, time in which its devices are told what was accepted, those of each host by one that knows it."""

    @property
    def is_wide(self) -> bool:
        """It is over several hosts."""
        return self.hosts > 1


@dataclass(frozen=True, kw_only=True)
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
        least = min(case.least_ns(hosts, self.message_ns) for case in self._cases(hosts, devices))
        return least * (1 - limits.MARGIN)

    def _cases(self, hosts: int, devices: float) -> tuple["_Case", ...]:
        if devices == math.inf:
            return self._any_devices
        return _cases(
            self.layers,
            *(
                [part for part in parts if part.devices + max(0, hosts - part.hosts) <= devices]
                for parts in (self.stages, *self.blocks)
            ),
        )

    @cached_property
    def _any_devices(self) -> tuple["_Case", ...]:
        """The cases of answers with any number of devices, which are the same for all numbers of hosts."""
        return _cases(self.layers, self.stages, *self.blocks)

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
    """Return the bound of a problem and all that it leaves out."""
    stages, *blocks = _stage_parts(problem), *map(_block_parts, problem.blocks)
    for wide in wider:
        one = Part(hosts=wide.most_hosts, devices=wide.least_devices, receive=wide.first)
        stages.append(replace(one, layer_ns=wide.layer_ns, hop_ns=wide.network_hop_ns, told_ns=wide.told_ns))
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
class _Case:
    """The bound of the answers of one case, as a function of their hosts."""

    layers_ns: float
    prices: Sequence[tuple[float, float]]
    """Prices of a host, each with the least ns of the parts beyond the layers and less it for each of their hosts."""
    afar_ns: float = 0.0
    """Least ns of receiving from another host, which the chain does for each host but one."""

    def least_ns(self, hosts: int, message_ns: int) -> float:
        """Return what an answer on so many hosts takes at least."""
        parts_ns = max(price * hosts + ns for price, ns in self.prices)
        return self.layers_ns + parts_ns + (hosts - 1) * (message_ns + self.afar_ns)


def _cases(layers: Sequence[int], stages: Sequence["Part"], *blocks: Sequence["Part"]) -> tuple[_Case, ...]:
    """Return the three cases with these parts."""
    near = _stages(layers, [part for part in stages if not part.is_wide])
    return _no_wide(near, blocks), _wide_blocks(near, blocks), _wide_stage(_stages(layers, stages), blocks)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stages:
    """The groups that may run a stage in one of the cases."""

    layers_ns: float
    """Time of all layers, each where it takes least; infinite where a kind is run by no group."""
    parts: Sequence[Part]
    """Their ``ns``: what the layers of a stage take beyond that, at least."""
    alone: Sequence[tuple[Part, float]]
    """Each with what all layers take beyond that on it alone, and what telling its devices takes."""

    @property
    def prices(self) -> list[float]:
        """Prices of a host in ns at which no stage in a site of its own is worth more than it costs."""
        highest = min(((part.hop_ns + part.ns) / part.hosts for part in self.parts), default=0.0)
        return [share * highest for share in SHARES]


def _stages(layers: Sequence[int], parts: Sequence[Part]) -> _Stages:
    least = [min((part.layer_ns[k] for part in parts), default=math.inf) for k in range(len(layers))]
    if math.inf in least:
        return _Stages(layers_ns=math.inf, parts=(), alone=())
    beyond = [[ns - low for ns, low in zip(part.layer_ns, least, strict=True)] for part in parts]
    return _Stages(
        layers_ns=sum(count * ns for count, ns in zip(layers, least, strict=True)),
        parts=[replace(part, ns=min(ns)) for part, ns in zip(parts, beyond, strict=True)],
        alone=[
            (part, part.told_ns + sum(count * ns for count, ns in zip(layers, of_part, strict=True)))
            for part, of_part in zip(parts, beyond, strict=True)
        ],
    )


def _least(parts: Iterable[Part]) -> float:
    """Return the least ns of a part with what it receives and to be told."""
    return min((part.ns + part.receive.same_ns + part.told_ns for part in parts), default=math.inf)


def _no_wide(near: _Stages, blocks: Sequence[Sequence[Part]]) -> _Case:
    """Bound the answers of which no part is wide."""
    blocks = [[part for part in parts if not part.is_wide] for parts in blocks]
    receivers = [*near.parts, *(part for parts in blocks[1:] for part in parts)]
    # beyond what is received from the same devices, which is in the least of each part
    beyond = [part.receive.far_ns - part.receive.same_ns for part in receivers]
    afar_ns = min([*beyond, *(part.hop_ns for part in near.parts)], default=0)
    least = _least(near.parts) + sum(map(_least, blocks))
    return _Case(layers_ns=near.layers_ns, prices=[(0.0, least)], afar_ns=afar_ns)


def _wide_blocks(near: _Stages, blocks: Sequence[Sequence[Part]]) -> _Case:
    """Bound the answers of which some block is wide, and no stage."""
    by_width = [{wide: [part for part in parts if part.is_wide == wide] for wide in (False, True)} for parts in blocks]
    widths = [wide for wide in product((False, True), repeat=len(blocks)) if any(wide)]
    of_widths = [[parts[wide] for parts, wide in zip(by_width, of_blocks, strict=True)] for of_blocks in widths]

    def least(price: float) -> float:
        return min(_finished(price, _near_stages(price, near, first), rest) for first, *rest in of_widths)

    return _Case(layers_ns=near.layers_ns, prices=[(price, least(price)) for price in near.prices])


def _wide_stage(stages: _Stages, blocks: Sequence[Sequence[Part]]) -> _Case:
    """Bound the answers of which some stage is wide."""
    first, *rest = blocks

    def least(price: float) -> float:
        return _finished(price, _some_wide_stage(price, stages, first), rest)

    return _Case(layers_ns=stages.layers_ns, prices=[(price, least(price)) for price in stages.prices])


# ---- chains of parts ----


_Ends = Mapping[tuple[int, int], float]
"""The least ns of a chain by the hosts and devices of its last part, beyond the layers and less the price of hosts."""


def _ends(
    parts: Iterable[tuple[Part, float]], price: float, before: _Ends | None = None, near_ns: float = math.inf
) -> _Ends:
    """Return the chains that end with one of the parts, of which each takes so many ns and what it receives.

    ``before``: chains that it receives from, None where it receives nothing; ``near_ns``: the least of one that may end
    on any devices of one host.
    """
    any_ns = math.inf if before is None else min(near_ns, _least_of(before))
    ends: dict[tuple[int, int], float] = {}
    for part, ns in parts:
        places = part.hosts, part.devices
        if before is not None:
            same_ns = min(before.get(places, math.inf), math.inf if part.is_wide else near_ns)
            ns += min(part.receive.same_ns + same_ns, part.receive.inside_ns + any_ns)
        ends[places] = min(ns - price * part.hosts, ends.get(places, math.inf))
    return ends


def _least_of(ends: _Ends) -> float:
    return min(ends.values(), default=math.inf)


def _near_stages(price: float, near: _Stages, first: Sequence[Part]) -> list[tuple[_Ends, float]]:
    """Return the chains of the block ``first`` and stages on one host each: one, or several, of which any is last."""
    opened = _ends([(part, part.ns) for part in first], price)
    only = _ends(near.alone, price, opened)
    several = _least_of(_ends([(part, part.ns + part.told_ns) for part in near.parts], price, opened))
    return [(only, math.inf), ({}, several)]


def _some_wide_stage(price: float, stages: _Stages, first: Sequence[Part]) -> list[tuple[_Ends, float]]:
    """Return the chains of the block ``first`` and stages of which a wide one is the only, the first, or another."""
    wide = [part for part in stages.parts if part.is_wide]
    opened = _ends([(part, part.ns) for part in first], price)
    only = _ends([(part, ns) for part, ns in stages.alone if part.is_wide], price, opened)
    wide_first = _least_of(_ends([(part, part.ns + part.told_ns) for part in wide], price, opened))
    later = _ends([(part, part.ns + part.hop_ns) for part in wide], price)
    any_first = _least_of(_ends([(part, part.ns) for part in stages.parts], price, opened))
    told = _ends([(part, part.ns + part.hop_ns + part.told_ns) for part in wide], price)
    return [
        (only, math.inf),
        ({places: wide_first + ns for places, ns in later.items()}, wide_first),
        ({places: any_first + ns for places, ns in told.items()}, any_first + _least_of(told)),
    ]


def _finished(price: float, chains: Iterable[tuple[_Ends, float]], blocks: Sequence[Sequence[Part]]) -> float:
    """Return the least ns of the chains with the blocks after the last stage."""
    least = math.inf
    for ends, near_ns in chains:
        for block in blocks:
            ends, near_ns = _ends([(part, part.ns) for part in block], price, ends, near_ns), math.inf
        least = min(least, _least_of(ends))
    return least


# ---- parts of a problem ----


def _stage_parts(problem: Problem) -> list[Part]:
    """Return the groups that run any layer."""
    parts = []
    for group in problem.groups:
        if any(group.splits):
            per_host = Counter(problem.host_of[device] for device in group.devices)
            part = Part(
                hosts=len(per_host),
                devices=len(group.devices),
                receive=group.first,
                layer_ns=_layer_ns(problem, group),
                hop_ns=group.network_hop_ns,
                told_ns=sum(problem.least_message_ns[host] * rounds(count) for host, count in per_host.items()),
            )
            parts.append(part)
    return parts


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
