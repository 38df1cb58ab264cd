"""Lower bounds where fewer devices may be in use than there are: the least over the sets of devices that may be it.

The bounds of :mod:`planner.solver.bounds.step` know nothing of the number of devices, so each set is bounded by itself,
with the groups and options inside it alone:

    bound(g) = min over sets S with g of bound_S(g)

Of equal devices of a host the first ones stand for any others, as candidates are runs of them: what is in use can be
moved together. Sets without the memory for all that every answer takes are left out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from planner.solver import limits
from planner.solver.bounds.step import Bounds, lower_bounds
from planner.solver.problem import Problem
from planner.solver.problem_bounds import least_bytes
from planner.solver.restriction import Restriction, everything


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """The bounds of the groups and options inside a set of devices, with their indices in the whole problem."""

    bounds: Bounds
    groups: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    """Per block."""

    def within(self, limit: float) -> Restriction:
        """Return the groups and choices that may be in an answer of at most ``limit`` ns, in the whole problem."""
        kept = self.bounds.within(limit)
        return Restriction(
            groups=tuple(self.groups[g] for g in kept.groups),
            choices=tuple(
                tuple((options[o], c) for o, c in choices)
                for options, choices in zip(self.options, kept.choices, strict=True)
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FewDevices:
    """The bounds of all sets, each of which is valid for the answers inside it."""

    problem: Problem
    parts: tuple[_Part, ...]

    @property
    def is_priced(self) -> bool:
        return all(part.bounds.is_priced for part in self.parts)

    @property
    def least(self) -> float:
        """ns that every answer takes at least; infinite where none fits."""
        return min((part.bounds.least for part in self.parts), default=math.inf)

    def tightened(self) -> "FewDevices":
        """Return these bounds with those added in which memory has its price."""
        return replace(self, parts=tuple(replace(part, bounds=part.bounds.tightened()) for part in self.parts))

    def within(self, limit: float) -> Restriction:
        """Return the groups and choices that may be in an answer of at most ``limit`` ns."""
        near = [part.within(limit) for part in self.parts if part.bounds.least <= limit]
        near = [restriction for restriction in near if restriction.possible]
        return Restriction(
            groups=tuple(sorted({g for restriction in near for g in restriction.groups})),
            choices=tuple(
                tuple(sorted({choice for restriction in near for choice in restriction.choices[b]}))
                for b in range(len(everything(self.problem).choices))
            ),
        )


def few_devices_bounds(problem: Problem) -> Bounds | FewDevices | None:
    """Return the bounds of a problem; of its sets of devices, where these are few and not all devices may be in use."""
    most = problem.most_devices
    if most is None or most >= len(problem.devices):
        return lower_bounds(problem)
    sets = list(islice(_device_sets(problem, most), limits.MOST_DEVICE_SETS + 1))
    if len(sets) > limits.MOST_DEVICE_SETS:
        return lower_bounds(problem)
    needed, parts = least_bytes(problem), []
    for devices in sets:
        if sum(problem.capacity_bytes[device] for device in devices) < needed:
            continue
        groups, options = _inside(problem, devices)
        if groups and all(options):
            bounds = lower_bounds(_restricted(problem, devices, groups, options))
            if bounds is None:
                return None
            parts.append(_Part(bounds=bounds, groups=groups, options=options))
    return FewDevices(problem=problem, parts=tuple(parts))


def _device_sets(problem: Problem, count: int) -> Iterator[frozenset[int]]:
    """Yield the sets of so many devices, of equal ones of a host the first."""
    classes: dict[tuple[int, int], list[int]] = {}
    for device, key in enumerate(zip(problem.host_of, problem.alike, strict=True)):
        classes.setdefault(key, []).append(device)
    for taken in _divisions(count, [len(members) for members in classes.values()]):
        yield frozenset(d for n, members in zip(taken, classes.values(), strict=True) for d in members[:n])


def _divisions(count: int, most: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the tuples of so many in sum, none more than ``most``."""
    if not most:
        if not count:
            yield ()
        return
    for first in range(max(0, count - sum(most[1:])), min(count, most[0]) + 1):
        for rest in _divisions(count - first, most[1:]):
            yield (first, *rest)


def _inside(problem: Problem, devices: frozenset[int]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Return the groups, and the options of each block, on these devices alone."""
    groups = tuple(g for g, group in enumerate(problem.groups) if devices.issuperset(group.devices))
    options = tuple(
        tuple(o for o, option in enumerate(block.options) if devices.issuperset(option.devices))
        for block in problem.blocks
    )
    return groups, options


def _restricted(
    problem: Problem, devices: frozenset[int], groups: Sequence[int], options: Sequence[Sequence[int]]
) -> Problem:
    """Return the problem with these groups and options; the other devices have no memory."""
    other = max(problem.alike) + 1
    blocks = [
        replace(block, options=tuple(block.options[o] for o in kept))
        for block, kept in zip(problem.blocks, options, strict=True)
    ]
    return replace(
        problem,
        alike=tuple(number if d in devices else other for d, number in enumerate(problem.alike)),
        capacity_bytes=tuple(nbytes if d in devices else 0 for d, nbytes in enumerate(problem.capacity_bytes)),
        groups=tuple(problem.groups[g] for g in groups),
        first=blocks[0],
        last=blocks[1],
        tail=blocks[2] if len(blocks) > 2 else None,
    )
