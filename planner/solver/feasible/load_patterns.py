"""Groups and block choices by the bytes that they take from each class of equal devices.

Devices of a host that nothing tells apart form a *class*. Groups with as many members of each class that take the same
bytes are one *load pattern*: for memory alone it makes no difference which of them runs. A pattern that takes no less
than another of the same members, in anything, is dropped: what fits with it fits with the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.solver.problem import Block, Problem, Split

Loads = tuple[int, ...]
"""Bytes on all members of each class together, in the order of ``members``."""

Members = tuple[tuple[int, int], ...]
"""Pairs of a class and the number of members of it, by class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadPattern:
    """The bytes that a group, or a choice of a block, takes from each class."""

    members: Members
    once: Loads
    """Loads of a stage apart from its layers, or of the choice."""
    splits: tuple[tuple[Loads, ...], ...]
    """For each kind of layer, the loads of one layer under each split, without its units. Empty for a block."""


def group_patterns(problem: Problem) -> dict[LoadPattern, list[int]]:
    """Return the patterns of groups, each with the indices of its groups."""
    loads_of: dict[tuple[int, tuple[int, ...]], tuple[Loads, ...]] = {}
    groups: dict[LoadPattern, list[int]] = {}
    for index, group in enumerate(problem.groups):
        classes = tuple(problem.alike[device] for device in group.devices)
        for splits in group.splits:
            if (id(splits), classes) not in loads_of:  # most groups with equal splits have the same object
                loads_of[id(splits), classes] = _split_loads(classes, splits)
        pattern = LoadPattern(
            members=_members(classes),
            once=tuple(_by_class(classes, np.array([group.stage_bytes]))[0].tolist()),
            splits=tuple(loads_of[id(splits), classes] for splits in group.splits),
        )
        groups.setdefault(pattern, []).append(index)
    return {pattern: groups[pattern] for pattern in _undominated_patterns(list(groups))}


def choice_patterns(problem: Problem, block: Block) -> dict[LoadPattern, list[tuple[int, int]]]:
    """Return the patterns of a block, each with its pairs of an option and a split."""
    choices: dict[LoadPattern, list[tuple[int, int]]] = {}
    for o, option in enumerate(block.options):
        classes = tuple(problem.alike[device] for device in option.devices)
        loads = _by_class(classes, np.array([split.bytes for split in option.splits]))
        for c, once in enumerate(loads.tolist()):
            pattern = LoadPattern(members=_members(classes), once=tuple(once), splits=())
            choices.setdefault(pattern, []).append((o, c))
    return choices


def _members(classes: Sequence[int]) -> Members:
    return tuple((number, classes.count(number)) for number in sorted(set(classes)))


def _by_class(classes: Sequence[int], nbytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return [row, class]: the sums of [row, member] over the members of each class."""
    members = [[number == other for other in classes] for number in sorted(set(classes))]
    return np.stack([nbytes[:, mask].sum(axis=1) for mask in members], axis=1)


def _split_loads(classes: Sequence[int], splits: Sequence[Split]) -> tuple[Loads, ...]:
    if not splits:
        return ()
    loads = np.unique(_by_class(classes, np.array([split.bytes for split in splits])), axis=0)
    return _undominated_loads(map(tuple, loads.tolist()))


def _undominated_loads(loads: Iterable[Loads]) -> tuple[Loads, ...]:
    """Drop loads that are no less than another in every class."""
    kept: list[Loads] = []
    for load in sorted(loads, key=lambda load: (sum(load), load)):
        if not any(_no_more(other, load) for other in kept):
            kept.append(load)
    return tuple(kept)


def _undominated_patterns(patterns: Sequence[LoadPattern]) -> list[LoadPattern]:
    """Drop patterns that take no less than another of the same members; keep the order."""
    kept: dict[Members, list[LoadPattern]] = {}
    for pattern in sorted(patterns, key=lambda pattern: (sum(pattern.once), pattern.once, pattern.splits)):
        same_members = kept.setdefault(pattern.members, [])
        if not any(_dominates(other, pattern) for other in same_members):
            same_members.append(pattern)
    return [pattern for pattern in patterns if pattern in kept[pattern.members]]


def _dominates(one: LoadPattern, other: LoadPattern) -> bool:
    """Return whether ``one`` takes no more once, and for every split of ``other`` has one that takes no more."""
    return _no_more(one.once, other.once) and all(
        any(_no_more(mine, load) for mine in my_loads)
        for my_loads, other_loads in zip(one.splits, other.splits, strict=True)
        for load in other_loads
    )


def _no_more(one: Loads, other: Loads) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))
