"""Lower bounds where nothing is divided: every group and every block is on a single device (``--strategy balanced``).

Blocks take memory, and so room for layers, which the other bounds ignore. With every block on a single device there are
few placements of the blocks, up to renaming of equal devices: each is bounded by itself, with its blocks' bytes taken
off the capacities and the devices that have a block in classes of their own. The bound of a group or choice is the
least over the placements:

    bound(g) = min over placements P of bound_P(g)

Exact but for the memory of axes that blocks may share. It costs one bound of the problem for each placement, of which
there may be ``limits.MOST_PLACEMENTS``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from planner.solver import limits
from planner.solver.bounds.excess import Excess
from planner.solver.problem import Block, Option, Problem


def whole_layer_bounds(problem: Problem, bound: Callable[[Problem], Excess]) -> Excess | None:
    """Return the bounds; None where something is divided, or blocks have too many placements.

    ``bound``: bounds of a problem whose blocks take no memory. Where nothing fits, nothing is listed.
    """
    device_sets = [group.devices for group in problem.groups]
    device_sets += [option.devices for block in problem.blocks for option in block.options]
    if max(map(len, device_sets)) > 1:
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
        excess = bound(placed)
        for g, ns in excess.groups.items():
            _lower(groups, problem.alike[problem.groups[g].devices[0]], excess.least + ns)
        for known, device in zip(choices, devices, strict=True):
            _lower(known, problem.alike[device], excess.bound)
    return _of_classes(problem, groups, choices)


def _lower(bounds: dict[int, float], key: int, value: float) -> None:
    if value < bounds.get(key, math.inf):
        bounds[key] = value


def _of_classes(problem: Problem, groups: dict[int, float], choices: Sequence[dict[int, float]]) -> Excess:
    """Return the bounds of groups and choices from those of the class of their device, in ns."""
    least = min(groups.values(), default=math.inf)
    return Excess(
        least=least,
        groups={
            g: groups[problem.alike[group.devices[0]]] - least
            for g, group in enumerate(problem.groups)
            if problem.alike[group.devices[0]] in groups
        },
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


def _placements(problem: Problem, before: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield a device for each block, after those of ``before``: of equal devices without a block only the first."""
    blocks = list(problem.blocks)
    if len(before) == len(blocks):
        yield before
        return
    opened = set()
    for device in sorted(option.devices[0] for option in blocks[len(before)].options):
        if device in before or problem.alike[device] not in opened:
            if device not in before:
                opened.add(problem.alike[device])
            yield from _placements(problem, (*before, device))


def _placed(problem: Problem, devices: Sequence[int]) -> Problem:
    """Return the problem with the blocks on these devices, whose bytes are taken off the capacities."""
    capacity, alike, blocks = list(problem.capacity_bytes), list(problem.alike), []
    for block, device in zip(problem.blocks, devices, strict=True):
        (option,) = (option for option in block.options if option.devices == (device,))
        capacity[device] -= _least_bytes(block, option, [device == other for other in devices])
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


def _least_bytes(block: Block, option: Option, has_block: Sequence[bool]) -> int:
    """Return the least bytes of a block on a device; ``has_block``: whether the device has each of the blocks."""
    own = (axis for axis in block.axes if axis.shared is None or not has_block[axis.shared == "last"])
    read = sum(axis.count * axis.read_bytes[option.devices[0]] for axis in block.axes)
    return min(split.bytes[0] for split in option.splits) + sum(axis.count * axis.each_bytes for axis in own) + read
