"""A greedy packing of given groups and choices: an upper bound of the bytes that are missing.

Blocks go where they take least, each layer to the group with the most room left, and what can be divided freely where
most is left. The packing is a placement, so with what it misses something fits; it is optimal when that equals
:func:`planner.solver.feasible.class_model.least_missing`, the lower bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from planner.solver.problem import Axis, Block, Option, Problem, Split
from planner.solver.restriction import Restriction

Bytes = NDArray[np.int64]


def packed(problem: Problem, structure: Restriction) -> tuple[int, ...] | None:
    """Return the bytes that each device misses when all these groups run, and each block has one of these choices.

    None for problems that it cannot pack: layers of several kinds, given numbers of layers, an order of stages that
    leaves a site and comes back; and where more devices are in use than may be.
    """
    sites = [site for site, _ in groupby(problem.groups[index].site for index in structure.groups)]
    if len(problem.kinds) > 1 or problem.counts is not None or (problem.ordered and len(sites) > len(set(sites))):
        return None
    packing = _Packing(problem, structure)
    if problem.most_devices is not None and packing.devices_in_use > problem.most_devices:
        return None
    return packing.missing()


@dataclass(kw_only=True, slots=True)
class _Divided:
    """An axis of a block, as it is divided."""

    devices: list[int]
    count: int
    """Number of pieces."""
    piece_bytes: Bytes
    """Bytes of a piece on each of the devices, with what all blocks that read it need beside it."""
    pieces: Bytes
    """Pieces on each of the devices."""


class _Packing:
    """Free bytes of all devices while a placement is put together; negative where bytes are missing."""

    def __init__(self, problem: Problem, structure: Restriction) -> None:
        """Put the blocks, and what stages take once."""
        self.problem = problem
        self.groups = [problem.groups[index] for index in structure.groups]
        self.left = np.array(problem.capacity_bytes, dtype=np.int64)
        for group in self.groups:
            self.left[list(group.devices)] -= group.stage_bytes
        self.divided: list[_Divided] = []
        """Axes of blocks: divided again when the layers are placed."""
        self.holders: list[_Divided] = []
        """Axis of each block that others may share, or the one that it shares itself."""
        device_sets: list[tuple[int, ...]] = []
        for block, choices in zip(problem.blocks, structure.choices, strict=True):
            device_sets.append(self._place_block(block, choices, device_sets))
        self.devices_in_use = len({d for devices in (*device_sets, *(g.devices for g in self.groups)) for d in devices})

    def missing(self) -> tuple[int, ...]:
        """Place the layers; return the bytes that each device misses."""
        for group, layers in zip(self.groups, self._layers(), strict=True):
            (splits,), (kind,) = group.splits, self.problem.kinds
            self._place_layers(list(group.devices), splits, layers)
            self._divide(list(group.devices), layers * kind.units, np.array([kind.unit_bytes] * len(group.devices)))
        for axis in self.divided:
            self.left[axis.devices] += axis.pieces * axis.piece_bytes
            self._divide(axis.devices, axis.count, axis.piece_bytes)
        return tuple(np.maximum(0, -self.left).tolist())

    def _place_block(
        self, block: Block, choices: Sequence[tuple[int, int]], before: Sequence[tuple[int, ...]]
    ) -> tuple[int, ...]:
        """Put a block where it takes least, among equals where most is left; return its devices.

        ``before``: devices of the blocks before it, with which it may share axes.
        """

        def holder(axis: Axis, option: Option) -> int | None:
            """Return the block that holds the pieces of an axis; None: its own."""
            other = int(axis.shared == "last")
            return other if axis.shared and before[other] == option.devices else None

        def price(key: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
            option = block.options[key[0]]
            split = option.splits[key[1]]
            own = (axis for axis in block.axes if holder(axis, option) is None)
            nbytes = sum(split.bytes) + sum(axis.count * axis.each_bytes for axis in own)
            return nbytes, -int(self.left[list(option.devices)].sum()), key

        o, c = min(choices, key=price)
        option = block.options[o]
        devices = list(option.devices)
        self.left[devices] -= option.splits[c].bytes
        read: list[_Divided] = []
        for axis in block.axes:
            other, read_bytes = holder(axis, option), np.array(axis.read_bytes)[devices]
            if other is None:
                nbytes = axis.each_bytes + read_bytes
                pieces = self._divide(devices, axis.count, nbytes)
                read.append(_Divided(devices=devices, count=axis.count, piece_bytes=nbytes, pieces=pieces))
                self.divided.append(read[-1])
            else:
                read.append(self.holders[other])
                self.left[devices] -= read[-1].pieces * read_bytes
                read[-1].piece_bytes += read_bytes
        self.holders += read[:1]
        return option.devices

    def _layers(self) -> list[int]:
        """Return the layers of each group: one, then one more wherever most bytes are left."""
        (kind,) = self.problem.kinds
        unit_bytes = kind.units * kind.unit_bytes
        layer_bytes = [min(sum(split.bytes) for split in group.splits[0]) + unit_bytes for group in self.groups]
        left = [
            int(self.left[list(group.devices)].sum()) - nbytes
            for group, nbytes in zip(self.groups, layer_bytes, strict=True)
        ]
        layers = [1] * len(self.groups)
        for _ in range(self.problem.layers - len(layers)):
            roomiest = max(range(len(layers)), key=lambda g: left[g])
            layers[roomiest] += 1
            left[roomiest] -= layer_bytes[roomiest]
        return layers

    def _place_layers(self, devices: list[int], splits: Sequence[Split], layers: int) -> None:
        """Put layers without their units, each under the smallest split that leaves most on the fullest device."""
        totals = [sum(split.bytes) for split in splits]
        nbytes = np.array([split.bytes for split, total in zip(splits, totals, strict=True) if total == min(totals)])
        for _ in range(layers):
            left = self.left[devices] - nbytes
            self.left[devices] = left[left.min(axis=1).argmax()]

    def _divide(self, devices: list[int], count: int, piece_bytes: Bytes) -> Bytes:
        """Divide pieces such that equally much is left on all devices with any, within a piece.

        ``piece_bytes``: of a piece on each device. Return how many each has. Bisection finds the highest level of free
        bytes above which all have room.
        """
        left, nbytes = self.left[devices], np.maximum(1, piece_bytes)
        low, high = int(left.min()) - (count + 1) * int(nbytes.max()), int(left.max()) + 1
        while high - low > 1:
            level = (low + high) // 2
            low, high = (level, high) if (np.maximum(0, left - level) // nbytes).sum() >= count else (low, level)
        above = np.maximum(0, left - low)
        pieces: Bytes = above // nbytes
        even = np.flatnonzero((above % nbytes == 0) & (pieces > 0))
        pieces[even[: pieces.sum() - count]] -= 1
        self.left[devices] -= pieces * piece_bytes
        return pieces
