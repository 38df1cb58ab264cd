"""The protocol for an earlier answer of which much is to be kept, in the indices of the problem.

The caller implements it (``planner.problem.previous_plan``); :mod:`planner.solver.moved_bytes` reads it, to count the
bytes of weights that a placement newly puts on devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from planner.solver.problem import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Consecutive layers of one kind that an earlier answer has in one stage, all divided as one split."""

    kind: int
    first: int
    """Index of the first layer in the sequence."""
    count: int
    """Number of layers."""
    stage: int
    """Index of the earlier stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldUnits:
    """Units that a device had in an earlier answer: in the mean layer, those from ``start / layers`` on."""

    layers: int
    """Layers of the kind in the device's earlier stage."""
    start: int
    """First unit, summed over these layers."""
    stop: int
    """Unit behind the last, summed over these layers."""


class Earlier(Protocol):
    """An earlier answer, of which much is to be kept, in the indices of the problem.

    Bytes are of weights that a device must newly get.
    """

    @property
    def segments(self) -> Sequence[Segment]:
        """All layers of the earlier answer, in order."""

    @property
    def stage_of(self) -> Sequence[int | None]:
        """Earlier stage of each device; None: it ran none."""

    @property
    def order(self) -> Sequence[int]:
        """All devices, in an order in which every group and option lists its members."""

    def stage_bytes(self, group: Group) -> int:
        """Return the new bytes of running a stage at all."""

    def split_bytes(self, group: int, kind: int, split: int, segment: Segment | None) -> int:
        """Return the new bytes of a layer of the segment, without units; None: of a segment that no member had."""

    def unit_bytes(self, kind: int) -> int:
        """Return the bytes of one unit of one layer."""

    def units(self, device: int, kind: int) -> HeldUnits | None:
        """Return the units that a device had; None: none."""

    def choice_bytes(self, block: int, option: int, split: int) -> int:
        """Return the new bytes of a block, without its axes."""

    def piece_bytes(self, block: int, axis: int) -> int:
        """Return the bytes of one piece."""

    def pieces(self, block: int, axis: int, device: int) -> tuple[int, int] | None:
        """Return the first piece that a device had and the one behind the last; None: it had none."""
