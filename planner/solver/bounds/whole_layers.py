"""Bounds where layers and blocks are whole, each on a single device: every placement of the blocks by itself.

A block takes the room of layers, so where the blocks are decides how many layers are where, and with them in their
places the bounds of stages are nearly exact. Of equal devices it makes no difference which has a block.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from planner.solver import limits
from planner.solver.bounds.chain import Chain, Excess
from planner.solver.problem import Block, Option, Problem


def whole_bounds(problem: Problem, apart: Callable[[Problem], Excess]) -> Excess | None:
    """Bounds with all receiving, none listed where nothing fits; None where something is divided, or too much is open.

    ``apart`` bounds a problem part by part, blocks without memory.
    """
    sets = [group.devices for group in problem.groups]
    sets += [option.devices for block in problem.blocks for option in block.options]
    if max(map(len, sets)) > 1:
        return None
    placements = list(islice(_placements(problem, ()), limits.MOST_PLACEMENTS + 1))
    if len(placements) > limits.MOST_PLACEMENTS:
        return None
    groups: dict[int, float] = {}
    choices: list[dict[int, float]] = [{} for _ in problem.blocks]
    for devices in placements:
        placed = _placed(problem, devices)
        if min(placed.capacity_bytes) < 0:
            continue
        found = Chain(placed, apart(placed)).excess()
        for g, excess in found.groups.items():
            _lower(groups, problem.alike[problem.groups[g].devices[0]], found.least + excess)
        for known, device in zip(choices, devices, strict=True):
            _lower(known, problem.alike[device], found.raised)
    least = min(groups.values(), default=math.inf)
    return Excess(
        least=least,
        groups={
            g: groups[problem.alike[group.devices[0]]] - least
            for g, group in enumerate(problem.groups)
            if problem.alike[group.devices[0]] in groups
        },
        received={},
        choices=tuple(
            {
                (o, c): known[problem.alike[option.devices[0]]] - least
                for o, option in enumerate(block.options)
                for c in range(len(option.splits))
                if problem.alike[option.devices[0]] in known
            }
            for block, known in zip(problem.blocks, choices, strict=True)
        ),
    )


def _lower(known: dict[int, float], key: int, value: float) -> None:
    if value < known.get(key, math.inf):
        known[key] = value


def _placements(problem: Problem, before: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """A device of each block: of equal ones that have no block yet, the first."""
    blocks = list(problem.blocks)
    if len(before) == len(blocks):
        yield before
        return
    open_classes = set()
    for device in sorted(option.devices[0] for option in blocks[len(before)].options):
        if device in before or problem.alike[device] not in open_classes:
            if device not in before:
                open_classes.add(problem.alike[device])
            yield from _placements(problem, (*before, device))


def _placed(problem: Problem, devices: Sequence[int]) -> Problem:
    """With the blocks on these devices, in memory that stages do not have, and the devices like no others."""
    capacity, alike, blocks = list(problem.capacity_bytes), list(problem.alike), []
    for block, device in zip(problem.blocks, devices, strict=True):
        (option,) = (option for option in block.options if option.devices == (device,))
        capacity[device] -= _least_bytes(block, option, [device == each for each in devices])
        alike[device] = max(problem.alike) + 1 + device
        blocks.append(replace(block, options=(option,)))
    return replace(
        problem,
        capacity_bytes=tuple(capacity),
        alike=tuple(alike),
        first=blocks[0],
        last=blocks[1],
        tail=blocks[2] if len(blocks) > 2 else None,
    )


def _least_bytes(block: Block, option: Option, here: Sequence[bool]) -> int:
    """Of a block on a device; ``here``: whether each block is."""
    own = (axis for axis in block.axes if axis.shared is None or not here[axis.shared == "last"])
    return min(split.bytes[0] for split in option.splits) + sum(axis.count * axis.each_bytes for axis in own)
