"""A placement of given groups that misses few bytes: every layer where most room is left, then what can be dealt out.

It proves nothing: what it misses is as few as can be where a bound says so.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from planner.solver.problem import Axis, Block, Option, Problem, Split
from planner.solver.restriction import Restriction

Bytes = NDArray[np.int64]


def packed(problem: Problem, structure: Restriction) -> tuple[int, ...] | None:
    """Bytes that each device misses when all these groups run, and blocks are one of their choices each.

    None where it is not known how: layers of several kinds, a number for each group, an order that leaves a site and
    comes back.
    """
    sites = [site for site, _ in groupby(problem.groups[index].site for index in structure.groups)]
    if len(problem.kinds) > 1 or problem.counts is not None or (problem.ordered and len(sites) > len(set(sites))):
        return None
    return _Packing(problem, structure).missing()


class _Packing:
    def __init__(self, problem: Problem, structure: Restriction) -> None:
        self.problem = problem
        self.groups = [problem.groups[index] for index in structure.groups]
        self.left = np.array(problem.capacity_bytes, dtype=np.int64)
        for group in self.groups:
            self.left[list(group.devices)] -= group.stage_bytes
        self.dealt: list[tuple[list[int], Axis, Bytes]] = []
        devices: list[tuple[int, ...]] = []
        for block, choices in zip(problem.blocks, structure.choices, strict=True):
            devices.append(self._block(block, choices, devices))

    def missing(self) -> tuple[int, ...]:
        for group, layers in zip(self.groups, self._layers(), strict=True):
            (splits,), (kind,) = group.splits, self.problem.kinds
            self._splits(list(group.devices), splits, layers)
            self._deal(list(group.devices), layers * kind.units, kind.unit_bytes)
        for devices, axis, pieces in self.dealt:
            self.left[devices] += pieces * axis.each_bytes
            self._deal(devices, axis.count, axis.each_bytes)
        return tuple(np.maximum(0, -self.left).tolist())

    def _block(
        self, block: Block, choices: Sequence[tuple[int, int]], before: Sequence[tuple[int, ...]]
    ) -> tuple[int, ...]:
        """Put a block where it takes least, and of such where most is left; the devices."""

        def own(option: Option) -> list[Axis]:
            return [a for a in block.axes if not a.shared or before[a.shared == "last"] != option.devices]

        def price(key: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
            option = block.options[key[0]]
            split = option.splits[key[1]]
            taken = sum(split.bytes) + sum(axis.count * axis.each_bytes for axis in own(option))
            return taken, -int(self.left[list(option.devices)].sum()), key

        o, c = min(choices, key=price)
        option = block.options[o]
        devices = list(option.devices)
        self.left[devices] -= option.splits[c].bytes
        for axis in own(option):
            self.dealt.append((devices, axis, self._deal(devices, axis.count, axis.each_bytes)))
        return option.devices

    def _layers(self) -> list[int]:
        """Of each group: one at least, then each where most is left."""
        (kind,) = self.problem.kinds
        each = [
            min(sum(split.bytes) for split in group.splits[0]) + kind.units * kind.unit_bytes for group in self.groups
        ]
        left = [
            int(self.left[list(group.devices)].sum()) - nbytes for group, nbytes in zip(self.groups, each, strict=True)
        ]
        found = [1] * len(self.groups)
        for _ in range(self.problem.layers - len(found)):
            most = max(range(len(found)), key=lambda g: left[g])
            found[most] += 1
            left[most] -= each[most]
        return found

    def _splits(self, devices: list[int], splits: Sequence[Split], layers: int) -> None:
        """Each layer divided such that most is left where least is."""
        totals = [sum(split.bytes) for split in splits]
        nbytes = np.array([c.bytes for c, total in zip(splits, totals, strict=True) if total == min(totals)])
        for _ in range(layers):
            left = self.left[devices] - nbytes
            self.left[devices] = left[left.min(axis=1).argmax()]

    def _deal(self, devices: list[int], count: int, each_bytes: int) -> Bytes:
        """Deal out equal pieces such that as much is left everywhere, but for one piece: how many each device has."""
        left, each = self.left[devices], max(1, each_bytes)
        low, high = int(left.min()) - (count + 1) * each, int(left.max()) + 1
        while high - low > 1:  # the highest level above which there is room for all
            level = (low + high) // 2
            low, high = (level, high) if (np.maximum(0, left - level) // each).sum() >= count else (low, level)
        above = np.maximum(0, left - low)
        pieces: Bytes = above // each
        even = np.flatnonzero((above % each == 0) & (pieces > 0))
        pieces[even[: pieces.sum() - count]] -= 1
        self.left[devices] -= pieces * each_bytes
        return pieces
