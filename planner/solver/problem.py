"""The waist between models and solvers: integers only, serialisable, no model words.

``layers`` layers run one after the other, in *stages*: consecutive layers, run by one group of devices. A device is in
one stage at most. Layers are of one or several *kinds*. Inside a group a layer has two divisible axes: a coarse one, of
which every way to divide it is listed as a *split* with its time and bytes, and a fine one (*units*), whose division
is a number per device. Before the first stage, after the last one, and after that, are up to three *blocks*: each is on
one of its listed options, a set of devices, divided as one of the option's splits and along its own fine axes. Block
and stages form a chain, ``first`` -> stages -> ``last`` -> ``tail``, in which each link of the chain receives from the
leader (the first device) of the one before.

Devices are referred to by index in canonical order; per-member tuples are in the order of ``devices``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Goal = Literal["time", "balance", "fill"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Receive:
    """What it costs to receive from the leader of the link before; none is less than the one above it."""

    same_ns: int
    """The link before is on the same devices."""
    inside_ns: int
    """Its leader is a member."""
    near_ns: int
    """Its leader is in the same site."""
    far_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One way to divide the coarse axis."""

    shares: tuple[int, ...]
    """Of each member; for whoever formulated the problem, nothing here depends on them."""
    ns: int
    """Without the fine axes: the slowest share, fixed work, collectives. Of a stage: of one layer."""
    bytes: tuple[int, ...]
    """Of each member. Of a stage: per layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Layers that are alike: their fine axis."""

    units: int
    """Of one layer."""
    unit_bytes: int
    unit_ps: tuple[int, ...]
    """Time of one unit on each device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Devices that may run a stage together, in one way; several groups may have the same devices."""

    devices: tuple[int, ...]
    site: int
    """The host of the devices. Of a group over several hosts a site of its own, which no other group has. The stages
    of a site follow one another."""
    splits: tuple[tuple[Split, ...], ...]
    """Of each kind; no splits: the group runs no layer of that kind."""
    hop_ns: int
    """Reaching this group from the stage before, in the same site."""
    network_hop_ns: int
    """Reaching it from a stage in another site."""
    first: Receive
    """When it runs the first stage: receiving from the block ``first``."""
    stage_bytes: tuple[int, ...]
    """Of each member, once, when the group runs a stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A fine axis of a block: ``count`` pieces, dealt out over the members of its option in any numbers."""

    count: int
    each_bytes: int
    each_ps: tuple[int, ...]
    """Time of one piece on each device; the block waits for the slowest member."""
    shared: Literal["first", "last"] | None
    """On the same devices as that block the axis is that block's: the same numbers, and no bytes. The two have equally
    many pieces. Elsewhere it is an axis of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """Devices that a block may be on."""

    devices: tuple[int, ...]
    sites: tuple[int, ...]
    """Hosts of the devices."""
    splits: tuple[Split, ...]
    receive: Receive


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Something beside the layers that is on one set of devices."""

    options: tuple[Option, ...]
    axes: tuple[Axis, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Place layers and blocks on devices such that one step takes least."""

    devices: tuple[str, ...]
    capacity_bytes: tuple[int, ...]
    hosts: tuple[tuple[int, ...], ...]
    """Devices of each host."""
    alike: tuple[int, ...]
    """Devices of one host that nothing tells apart have the same number. Only a hint for bounds."""
    kinds: tuple[Kind, ...]
    sequence: tuple[tuple[int, int], ...]
    """Runs of (kind, number of layers), in the order of execution."""
    groups: tuple[Group, ...]
    ordered: bool
    """Stages run in the order of ``groups``."""
    counts: tuple[int, ...] | None
    """Layers that each group runs, where they are given."""
    first: Block
    """Has one axis; receives nothing (its options' ``receive`` is zero)."""
    last: Block
    """Has one axis; receives from the last stage."""
    tail: Block | None
    """Receives from ``last``."""
    quantum_ns: int
    """Time that is divided freely is counted in whole quanta, rounded up: finer than any prediction, and without it the
    proof is about the last nanosecond of a rounding. Along fine axes per stage and kind, and per axis of a block; and
    per stage and kind the time of the splits of all its layers together."""
    message_ns: tuple[int, ...]
    """Of each host: telling its other devices, when it has more than one in use."""
    network_message_ns: int
    """Telling one more host in use."""
    goal: Goal
    """What comes first. ``time``: the step. ``balance``: the least free memory of any device, in granules, as much as
    can be, then the step. ``fill``: as many layers as can be in the first group, then in the second, …, then the
    step."""
    spare: int | None
    """``balance`` only: the device on which as little as can be (in granules) is to lie, before all else; it does not
    count for the balance."""

    @property
    def layers(self) -> int:
        return sum(count for _, count in self.sequence)

    def layers_of(self, kind: int) -> int:
        return sum(count for each, count in self.sequence if each == kind)

    @property
    def blocks(self) -> Iterator[Block]:
        """``first``, ``last`` and, where there is one, ``tail``."""
        yield self.first
        yield self.last
        if self.tail is not None:
            yield self.tail


FREE_BITS = 12


def granule_bytes(problem: Problem) -> int:
    """Free memory is compared in granules: the largest capacity has FREE_BITS bits of them."""
    return 1 << max(0, max(problem.capacity_bytes).bit_length() - FREE_BITS)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageAnswer:
    """A stage. The layers of each kind that it has are those of its place in the sequence."""

    group: int
    layers: tuple[tuple[int, ...], ...]
    """Of each kind, of each of the group's splits."""
    units: tuple[tuple[int, ...], ...]
    """Of each kind, of each member, over all its layers of that kind."""

    @property
    def num_layers(self) -> int:
        return sum(map(sum, self.layers))


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockAnswer:
    """Where a block is, and how each axis is dealt out over the members: None where it is shared."""

    option: int
    split: int
    shares: tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An assignment: stages in the order of execution."""

    stages: tuple[StageAnswer, ...]
    first: BlockAnswer
    last: BlockAnswer
    tail: BlockAnswer | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Consecutive layers of one kind that an earlier answer has in one stage, and divides as one split."""

    kind: int
    first: int
    count: int
    stage: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldUnits:
    """Units that a device had, summed over so many layers: of each, those from the mean start to the mean stop."""

    layers: int
    start: int
    stop: int


class Earlier(Protocol):
    """An earlier answer, of which much is to be kept: bytes of weights that a device has not had, and what it had."""

    @property
    def segments(self) -> Sequence[Segment]:
        """All layers, in order."""

    @property
    def stage_of(self) -> Sequence[int | None]:
        """Of each device."""

    @property
    def order(self) -> Sequence[int]:
        """Devices such that all groups and options list theirs in this order."""

    def stage_bytes(self, group: Group) -> int:
        """Anew for having a stage at all."""

    def split_bytes(self, group: int, kind: int, split: int, segment: Segment | None) -> int:
        """Anew for a layer of the segment, without its units; None: of no segment that any of the group had."""

    def unit_bytes(self, kind: int) -> int:
        """Of one unit of one layer."""

    def units(self, device: int, kind: int) -> HeldUnits | None:
        """Had over all layers of the kind in the device's stage."""

    def choice_bytes(self, block: int, option: int, split: int) -> int:
        """Anew for a block, without its axes."""

    def piece_bytes(self, block: int, axis: int) -> int:
        """Of one piece."""

    def pieces(self, block: int, axis: int, device: int) -> tuple[int, int] | None:
        """Had: start and stop."""
