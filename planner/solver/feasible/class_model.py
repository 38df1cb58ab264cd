"""The least memory that is missing for any placement to exist, with equal devices counted instead of told apart.

Time plays no part in it. Devices of a host that nothing tells apart are a *class*; groups with as many members of each
class, that take the same bytes, are a *sort*, of which is asked how many run, how many layers all of them have, and
what lies on each class. So what it finds is a bound: no placement misses less than

    sum over devices of max(load, capacity) - capacity

where a device that is not full wastes what others miss. What lies in blocks may fill any waste of a class. Groups for
what is counted are then a placement to be tried, which misses as little more often than not.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from planner.errors import NotProvenError
from planner.solver import limits
from planner.solver.minimise import Settings, best_within, minimise
from planner.solver.problem import Block, Problem, Split
from planner.solver.restriction import Restriction

Linear = cp_model.LinearExpr | int
Loads = tuple[int, ...]
"""Bytes on all members of each class together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sort:
    """Groups, or choices of a block, that take the same bytes of the same classes."""

    members: tuple[tuple[int, int], ...]
    """(class, number)."""
    once: Loads
    splits: tuple[tuple[Loads, ...], ...]
    """Of each kind, of a layer, but for those that are more than another in every class; none of a block."""


def least_missing(problem: Problem) -> tuple[int, Restriction | None]:
    """Bytes that any placement misses at least, and groups and choices that may miss no more."""
    counts = _counts(problem, elastic=True)
    if counts is None:
        return 0, None
    try:
        found = minimise(counts, counts.missing, Settings(limit=limits.COUNT_LIMIT), what="missing bytes")
    except NotProvenError as error:
        return max(0, error.bound_ns or 0), None
    return found.value, counts.told_apart()


def roomiest(problem: Problem) -> Restriction | None:
    """Groups and choices that leave much memory, if any are found; raise Infeasible where none can have enough.

    That none leaves more need not be proven: they are tried.
    """
    counts = _counts(problem, elastic=False)
    try:
        settings = Settings(limit=limits.COUNT_LIMIT)  # never the caller's: the result decides what is tried
        found = counts and minimise(counts, counts.load, settings, what="bytes", mode=best_within(limits.ROOM_LIMIT))
    except NotProvenError:
        found = None
    return counts.told_apart() if counts and found else None


def _counts(problem: Problem, *, elastic: bool) -> "_Counts | None":
    """None where there is too much to count."""
    sorts = _sorts(problem)
    if sum(len(splits) for sort in sorts for splits in sort.splits) > limits.MOST_COLUMNS:
        return None
    return _Counts(problem, sorts, elastic=elastic)


class _Counts:
    """The count of a problem as a model."""

    def __init__(self, problem: Problem, sorts: dict[_Sort, list[int]], *, elastic: bool) -> None:
        """``sorts``: with the indices of their groups; ``elastic``: devices may be short of memory."""
        self.problem = problem
        self.sorts = sorts
        self.elastic = elastic
        self.model = cp_model.CpModel()
        self.values: list[int] = []
        self.size = {each: problem.alike.count(each) for each in problem.alike}
        self.capacity = dict(zip(problem.alike, problem.capacity_bytes, strict=True))
        self.staged: dict[int, list[Linear]] = {each: [] for each in self.size}
        self.placed: dict[int, list[Linear]] = {each: [] for each in self.size}
        self.wasted: dict[int, list[Linear]] = {each: [] for each in self.size}
        self.busy: dict[int, list[Linear]] = {each: [] for each in self.size}
        self.runs = [self._stage(sort) for sort in self.sorts]
        self._exclusive()
        for kind, layers in enumerate(zip(*(layers for _, layers in self.runs), strict=True)):
            self.model.add(sum(layers) == problem.layers_of(kind))
        self.options = [_options(problem, block) for block in problem.blocks]
        self.on: list[dict[_Sort, cp_model.IntVar]] = []
        for block, options in zip(problem.blocks, self.options, strict=True):
            self._block(block, options)
        self.missing = sum(self._missing(each) for each in self.size)
        self.load = sum(sum(loads) for loads in (*self.staged.values(), *self.placed.values()))

    def _int(self, most: int) -> cp_model.IntVar:
        return self.model.new_int_var(0, most, "")

    # ---- stages ----

    def _stage(self, sort: _Sort) -> tuple[cp_model.IntVar, list[Linear]]:
        """How many groups of a sort run, and of each kind how many layers they have."""
        problem = self.problem
        runs = self._int(min(problem.layers, *(self.size[each] // n for each, n in sort.members)))
        load: list[list[Linear]] = [[nbytes * runs] for nbytes in sort.once]
        sizes: list[Linear] = []
        for k, (kind, splits) in enumerate(zip(problem.kinds, sort.splits, strict=True)):
            most = problem.layers_of(k)
            layers = [self._int(most) for _ in splits]
            sizes.append(sum(layers))
            self.model.add(sum(layers) <= most * runs)
            units: list[Linear] = [self._int(most * kind.units) for _ in sort.members[1:]]
            rest = kind.units * sum(layers) - sum(units)
            self.model.add(rest >= 0)
            units.append(rest)
            for j, here in enumerate(load):
                here.append(kind.unit_bytes * units[j])
                here += [n * each[j] for n, each in zip(layers, splits, strict=True)]
        self.model.add(sum(sizes) >= runs)
        for (each, members), nbytes in zip(sort.members, load, strict=True):
            left = self.capacity[each] * members * runs - sum(nbytes)
            wasted = self._int(self.capacity[each] * self.size[each])
            self.model.add(wasted >= left if self.elastic else wasted == left)
            self.staged[each] += nbytes
            self.wasted[each].append(wasted)
            self.busy[each].append(members * runs)
            if len(sort.members) == members == 1 and len(problem.kinds) == len(sort.splits[0]) == 1:
                self._whole_layers(sort, runs, sizes[0], wasted)
        return runs, sizes

    def _whole_layers(self, sort: _Sort, runs: cp_model.IntVar, layers: Linear, wasted: Linear) -> None:
        """A device alone has whole layers: as many as it has room for leave a rest."""
        ((each, _),), (once,), (kind,), (((split,),),) = sort.members, sort.once, self.problem.kinds, sort.splits
        room = self.capacity[each] - once
        count, rest = divmod(room, split + kind.units * kind.unit_bytes)
        if room > 0:
            self.model.add(wasted >= rest * ((count + 1) * runs - layers))

    def _exclusive(self) -> None:
        """Of groups that all have the same device one runs: those over several hosts, and whole hosts."""
        holders: dict[int, list[cp_model.IntVar]] = {}
        for (runs, _), found in zip(self.runs, self.sorts.values(), strict=True):
            for device in set.intersection(*(set(self.problem.groups[index].devices) for index in found)):
                holders.setdefault(device, []).append(runs)
        for each in holders.values():
            self.model.add(sum(each) <= 1)

    # ---- blocks ----

    def _block(self, block: Block, options: dict[_Sort, list[tuple[int, int]]]) -> None:
        on = {sort: self.model.new_bool_var("") for sort in options}
        self.model.add_exactly_one(on.values())
        holders: dict[int, list[cp_model.IntVar]] = {}
        for sort, chosen in on.items():
            for (each, _), nbytes in zip(sort.members, sort.once, strict=True):
                holders.setdefault(each, []).append(chosen)
                self.placed[each].append(nbytes * chosen)
        self.on.append(on)
        for axis in block.axes:
            shared = self._same_members(0 if axis.shared == "first" else 1) if axis.shared else 0
            pieces = {each: self._int(axis.count) for each in holders}
            self.model.add(sum(pieces.values()) == axis.count * (1 - shared))
            for each, count in pieces.items():
                self.model.add(count <= axis.count * sum(holders[each]))
                self.placed[each].append(axis.each_bytes * count)

    def _same_members(self, other: int) -> Linear:
        """Whether the last block may be on the devices of another."""
        mine, theirs = _by_members(self.on[-1]), _by_members(self.on[other])
        both = []
        for members in sorted(mine.keys() & theirs.keys()):
            same = self.model.new_bool_var("")
            self.model.add(same <= sum(mine[members]))
            self.model.add(same <= sum(theirs[members]))
            both.append(same)
        return sum(both)

    # ---- all together ----

    def _missing(self, each: int) -> Linear:
        """Bytes that the devices of a class have too few."""
        all_bytes = self.capacity[each] * self.size[each]
        idle = self.size[each] - sum(self.busy[each])
        self.model.add(idle >= 0)
        if not self.elastic:
            self.model.add(sum(self.staged[each]) + sum(self.placed[each]) <= all_bytes)
            return 0
        unfilled = self._int(all_bytes)
        placed = sum(self.placed[each])
        self.model.add(unfilled >= sum(self.wasted[each]) + self.capacity[each] * idle - placed)
        return sum(self.staged[each]) + placed + unfilled - all_bytes

    # ---- what is counted, told apart ----

    def told_apart(self) -> Restriction | None:
        """Groups as many as there are of each sort, and blocks with their sort; None where groups overlap."""
        problem, taken, groups = self.problem, set[int](), list[int]()
        counted = [
            (self.values[runs.index], found) for (runs, _), found in zip(self.runs, self.sorts.values(), strict=True)
        ]
        for count, found in sorted(counted, key=lambda each: len(each[1])):
            for index in found:
                if count and not taken & set(problem.groups[index].devices):
                    taken |= set(problem.groups[index].devices)
                    groups.append(index)
                    count -= 1
            if count:
                return None
        choices = tuple(
            tuple(key for sort, keys in options.items() if self.values[on[sort].index] for key in keys)
            for options, on in zip(self.options, self.on, strict=True)
        )
        return Restriction(groups=tuple(sorted(groups)), choices=choices)


def _sorts(problem: Problem) -> dict[_Sort, list[int]]:
    """Of groups, with their indices."""
    known: dict[tuple[int, tuple[int, ...]], tuple[Loads, ...]] = {}
    found: dict[_Sort, list[int]] = {}
    for index, group in enumerate(problem.groups):
        looks = tuple(problem.alike[device] for device in group.devices)
        for listed in group.splits:
            if (id(listed), looks) not in known:  # most groups of a look have the same object
                known[id(listed), looks] = _loads(looks, listed)
        once = _by_class(looks, np.array([group.stage_bytes]))[0]
        splits = tuple(known[id(listed), looks] for listed in group.splits)
        sort = _Sort(members=_members(looks), once=tuple(once.tolist()), splits=splits)
        found.setdefault(sort, []).append(index)
    return {sort: found[sort] for sort in _fewest(list(found))}


def _by_members(on: dict[_Sort, cp_model.IntVar]) -> dict[tuple[tuple[int, int], ...], list[cp_model.IntVar]]:
    found: dict[tuple[tuple[int, int], ...], list[cp_model.IntVar]] = {}
    for sort, chosen in on.items():
        found.setdefault(sort.members, []).append(chosen)
    return found


def _members(looks: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((each, looks.count(each)) for each in sorted(set(looks)))


def _by_class(looks: Sequence[int], nbytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of the splits of each class."""
    return np.stack([nbytes[:, [look == each for look in looks]].sum(axis=1) for each in sorted(set(looks))], axis=1)


def _loads(looks: Sequence[int], splits: Sequence[Split]) -> tuple[Loads, ...]:
    if not splits:
        return ()
    return _least(map(tuple, np.unique(_by_class(looks, np.array([c.bytes for c in splits])), axis=0).tolist()))


def _least(loads: Iterable[Loads]) -> tuple[Loads, ...]:
    """Without those that are as much as another in everything."""
    found: list[Loads] = []
    for load in sorted(loads, key=lambda load: (sum(load), load)):
        if not any(all(a <= b for a, b in zip(one, load, strict=True)) for one in found):
            found.append(load)
    return tuple(found)


def _fewest(sorts: Sequence[_Sort]) -> Iterator[_Sort]:
    """Without those that take as much as another of the same members in everything."""
    found: dict[tuple[tuple[int, int], ...], list[_Sort]] = {}
    for sort in sorted(sorts, key=lambda sort: (sum(sort.once), sort.once, sort.splits)):
        alike = found.setdefault(sort.members, [])
        if not any(_no_more(other, sort) for other in alike):
            alike.append(sort)
    return (sort for sort in sorts if sort in found[sort.members])


def _no_more(one: _Sort, other: _Sort) -> bool:
    once = all(a <= b for a, b in zip(one.once, other.once, strict=True))
    return once and all(
        any(all(a <= b for a, b in zip(mine, load, strict=True)) for mine in splits)
        for splits, loads in zip(one.splits, other.splits, strict=True)
        for load in loads
    )


def _options(problem: Problem, block: Block) -> dict[_Sort, list[tuple[int, int]]]:
    """Sorts with their pairs of an option and a split."""
    found: dict[_Sort, list[tuple[int, int]]] = {}
    for o, option in enumerate(block.options):
        looks = tuple(problem.alike[device] for device in option.devices)
        nbytes = _by_class(looks, np.array([split.bytes for split in option.splits]))
        for c, once in enumerate(nbytes.tolist()):
            sort = _Sort(members=_members(looks), once=tuple(once), splits=())
            found.setdefault(sort, []).append((o, c))
    return found
