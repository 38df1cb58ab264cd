"""The waist between models and the solver: a placement problem in integers, without a word of models or hardware.

``layers`` layers run one after the other, in *stages*: consecutive layers, run by one group of devices. A device is in
one stage at most. Layers are of one or several *kinds*. Inside a group a layer has two divisible axes: a coarse one, of
which every way to divide it is listed as a *split* with its time and bytes, and a fine one (*units*), whose division
is a number per device. Up to three *blocks* are beside the layers: each is on one of its listed options, a set of
devices, divided as one of the option's splits and along its own fine axes. Blocks and stages form a chain

    first -> stage -> ... -> stage -> last -> tail

in which each link receives from the leader (the first device) of the one before.

A device is an index in ``Problem.devices``, a host in ``Problem.hosts``, a kind in ``Problem.kinds``. A *member* is a
device of a group or option; tuples per member are in the order of its ``devices``. Times are in ns or ps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from planner.integers import rounds

Goal = Literal["time", "balance", "fill"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Receive:
    """Time of receiving from the link before; each figure is at least the one above it."""

    same_ns: int
    """When the link before is on the same devices."""
    inside_ns: int
    """When its leader is a member, of other devices."""
    near_ns: int
    """When its leader is in a site of the receiver, and no member."""
    far_ns: int
    """When its leader is elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One way to divide the coarse axis."""

    shares: tuple[int, ...]
    """Shares of the coarse axis per member: a note for whoever formulated the problem; the solver reads times and bytes
    only."""
    ns: int
    """Time of one layer, or of the block, without fine axes: the slowest share, fixed work and collectives."""
    bytes: tuple[int, ...]
    """Bytes per member, of one layer or of the block, without fine axes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Layers that are alike, and their fine axis."""

    units: int
    """Units of one layer."""
    unit_bytes: int
    """Bytes of one unit of one layer."""
    unit_ps: tuple[int, ...]
    """Time of one unit, per device, which computes alone. A stage waits for its slowest member: the units of all its
    layers take as long as they do on the member on which they take longest, and in no layer less than the best division
    of whole units."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Devices that may run a stage together, in one way; several groups may have the same devices."""

    devices: tuple[int, ...]
    site: int
    """The host of the devices; for a group over several hosts a number of its own, beyond all hosts. The stages of a
    site follow one another."""
    splits: tuple[tuple[Split, ...], ...]
    """Per kind, all ways to divide a layer over the members; without any the group runs no layer of that kind."""
    hop_ns: int
    """Time of reaching this group from a stage before it in the same site."""
    network_hop_ns: int
    """Time of reaching it from a stage in another site."""
    first: Receive
    """Time of receiving from the block ``first``, when the group runs the first stage."""
    stage_bytes: tuple[int, ...]
    """Bytes per member that a stage takes once, whatever its layers."""
    quantum_ns: int
    """Times of what is divided freely are rounded up to whole quanta: finer than any prediction is, and without it a
    proof would be about the last nanosecond of a rounding. They are, per kind of layer, the time of the units and the
    time of the splits of all layers of the stage."""
    slowed_ps: tuple[tuple[int, ...], ...] | None = None
    """Time of one unit, per kind, per member, where members that compute at once are slower than alone; None: that of
    the kinds, and nowhere is it less."""

    def unit_ps(self, k: int, kind: Kind) -> tuple[int, ...]:
        """Return the time of one unit of a kind with the index k, per member."""
        return _of_members(self, kind.unit_ps, None if self.slowed_ps is None else self.slowed_ps[k])


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A fine axis of a block: ``count`` pieces, dealt out over the members of its option in any numbers."""

    count: int
    """Number of pieces."""
    each_bytes: int
    """Bytes of one piece."""
    read_bytes: tuple[int, ...]
    """Bytes that a device needs beside each piece that it reads, also where the piece is the other block's."""
    each_ps: tuple[int, ...]
    """Time of one piece, per device, which computes alone. The block waits for its slowest member."""
    shared: Literal["first", "last"] | None
    """A block whose axis has the same pieces. On exactly the devices of that block this axis is dealt out as that one,
    which holds the bytes. On others, or where this is None, it is an axis of its own; only on a device that has that
    block alone, and so all its pieces, those of this axis take no bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """Devices that a block may be on."""

    devices: tuple[int, ...]
    sites: tuple[int, ...]
    """Hosts of the devices, ascending."""
    splits: tuple[Split, ...]
    """All ways to divide the block over the devices."""
    receive: Receive
    """Time of receiving from the link before."""
    quantum_ns: int
    """The time of each axis is rounded up to whole quanta."""
    slowed_ps: tuple[tuple[int, ...], ...] | None = None
    """Time of one piece, per axis, per member, as ``Group.slowed_ps``; None: that of the axes."""

    def piece_ps(self, a: int, axis: Axis) -> tuple[int, ...]:
        """Return the time of one piece of an axis with the index a, per member."""
        return _of_members(self, axis.each_ps, None if self.slowed_ps is None else self.slowed_ps[a])


def _of_members(over: Group | Option, alone_ps: tuple[int, ...], slowed_ps: tuple[int, ...] | None) -> tuple[int, ...]:
    return tuple(alone_ps[device] for device in over.devices) if slowed_ps is None else slowed_ps


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A part of the model beside the layers, on one set of devices."""

    options: tuple[Option, ...]
    axes: tuple[Axis, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Place layers and blocks on devices such that one step takes least."""

    devices: tuple[str, ...]
    """Names, in canonical order."""
    capacity_bytes: tuple[int, ...]
    """Memory that a placement may take, per device."""
    hosts: tuple[tuple[int, ...], ...]
    """Devices of each host, ascending."""
    alike: tuple[int, ...]
    """A class per device: devices of one host that nothing tells apart have the same number. Only bounds read it."""
    kinds: tuple[Kind, ...]
    sequence: tuple[tuple[int, int], ...]
    """Runs of (kind, number of layers), in the order of execution."""
    groups: tuple[Group, ...]
    """All groups that may run a stage."""
    ordered: bool
    """Stages run in the order of ``groups``."""
    counts: tuple[int, ...] | None
    """Layers that each group runs, per group; None: any number."""
    first: Block
    """Has one axis; receives nothing (its options' ``receive`` is zero)."""
    last: Block
    """Has one axis; receives from the last stage."""
    tail: Block | None
    """Receives from ``last``."""
    message_ns: tuple[int, ...]
    """Time per host of a round in which its devices are told what was accepted (:func:`planner.integers.rounds`)."""
    awake_ns: tuple[int | None, ...]
    """By host: the time of telling its devices in use, if there are several. It counts where all devices in use are on
    the last link of the chain, and so awake; elsewhere some sleep, and one ``message_ns``, no less, tells all of them.
    None: they are told in rounds."""
    waits_ns: tuple[tuple[int, ...], ...]
    """By host: by how much later the last of 1, 2, ... devices in use has the message where some sleep, and is told at
    once: who was woken before has the core. Rising, from 0; none: no later, however many."""
    network_message_ns: int
    """Time of telling each host in use but the first."""
    goal: Goal
    """Objective that comes first. ``time``: the step time, minimised. ``balance``: the least free memory of any device,
    in granules, maximised; then the step time. ``fill``: the layers of the first group, maximised, then those of the
    second, and so on; then the step time."""
    most_devices: int | None
    """Most devices in use; None: any number."""
    simplify_ppm: int
    """An answer may take longer than the least step by so much, in parts per million, to be simpler: of these one with
    the fewest devices in use comes first, then one with the fewest runs of layers."""
    tie_ppm: int
    """Most by which rounding is taken to have made the difference between two step times, in parts per million."""
    spare: int | None
    """``balance`` only: the device whose load, in granules, is minimised before all else; it does not count for the
    balance."""

    @property
    def layers(self) -> int:
        """Number of layers."""
        return sum(count for _, count in self.sequence)

    @property
    def layer_kinds(self) -> tuple[int, ...]:
        """Kind of each layer, in the order of execution."""
        return tuple(kind for kind, count in self.sequence for _ in range(count))

    def layers_of(self, kind: int) -> int:
        """Return the number of layers of a kind."""
        return sum(count for other, count in self.sequence if other == kind)

    @cached_property
    def least_message_ns(self) -> tuple[int, ...]:
        """Per host the least time of a round of telling its devices, awake or not."""
        return tuple(
            ns if awake_ns is None else min(ns, awake_ns // max(1, rounds(len(devices))))
            for ns, awake_ns, devices in zip(self.message_ns, self.awake_ns, self.hosts, strict=True)
        )

    @cached_property
    def host_of(self) -> tuple[int, ...]:
        """Host of each device."""
        hosts = {device: host for host, devices in enumerate(self.hosts) for device in devices}
        return tuple(hosts[device] for device in range(len(self.devices)))

    @property
    def blocks(self) -> Iterator[Block]:
        """``first``, ``last`` and, where there is one, ``tail``."""
        yield self.first
        yield self.last
        if self.tail is not None:
            yield self.tail


BALANCE_BITS = 12
FREE_BITS = 15
"""Parts of what is optimal, not limits: in bytes the least free memory is a number partitioning problem."""


def granule_bytes(problem: Problem) -> int:
    """Return the unit in which the goal ``balance`` counts memory: the largest capacity has BALANCE_BITS bits of it."""
    return 1 << max(0, max(problem.capacity_bytes).bit_length() - BALANCE_BITS)


def free_granule_bytes(problem: Problem) -> int:
    """Return the unit in which ties are broken by free memory: what is divided freely has FREE_BITS bits of it.

    It does not depend on the devices, so that those which are not used have no part in it.
    """
    nbytes = sum(problem.layers_of(k) * kind.units * kind.unit_bytes for k, kind in enumerate(problem.kinds))
    nbytes += sum(axis.count * axis.each_bytes for block in problem.blocks for axis in block.axes)
    return 1 << max(0, nbytes.bit_length() - FREE_BITS)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAnswer:
    """Layers of a stage that are of one kind and divided alike."""

    split: int
    """Index of a split of the group."""
    layers: int
    """Number of layers."""
    units: tuple[int, ...]
    """Units of one layer, per member."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageAnswer:
    """A stage. Its layers of each kind are those of its place in the sequence."""

    group: int
    """Index in ``Problem.groups``."""
    layers: tuple[tuple[int, ...], ...]
    """Number of layers per kind, per split of the group."""
    units: tuple[tuple[int, ...], ...]
    """Units per kind, per member, summed over all layers of that kind."""
    runs: tuple[tuple[RunAnswer, ...], ...] | None = None
    """Per kind, its layers as runs; None: units are dealt out over the layers as evenly as can be."""

    @property
    def num_layers(self) -> int:
        """Layers of all kinds."""
        return sum(map(sum, self.layers))


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockAnswer:
    """A placement of a block."""

    option: int
    """Index in ``Block.options``."""
    split: int
    """Index in ``Option.splits``."""
    shares: tuple[tuple[int, ...] | None, ...]
    """Pieces per axis, per member; None where the axis is shared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A placement of all layers and blocks."""

    stages: tuple[StageAnswer, ...]
    """In the order of execution."""
    first: BlockAnswer
    last: BlockAnswer
    tail: BlockAnswer | None
