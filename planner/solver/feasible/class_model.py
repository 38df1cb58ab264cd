"""A relaxation of memory alone: equal devices are counted instead of told apart, in a small CP-SAT model.

The model decides how many groups of each load pattern (:mod:`planner.solver.feasible.load_patterns`) run, how many
layers all of them have together, and how many bytes lie on each class of devices. Time and the order of stages play no
part. Every placement gives such counts, so no placement misses less than the least by count of

    missing = Σ over devices of max(load, capacity) - capacity

The relaxation: within a class, and within all stages of a pattern, bytes may lie anywhere. Unused bytes of one device
do not offset a shortage on another, so what stages leave free counts as waste; but block bytes are assumed to fill any
waste of their class perfectly. Per class, with ``staged`` and ``placed`` the bytes of stages and blocks,

    missing >= staged + placed + unfilled - capacity,    unfilled >= waste + idle devices' capacity - placed.

Where devices of a class are alone in their stages with layers of one kind and one split, waste is at least the rest
that whole layers leave. Counts that are reached by actual groups (``groups_and_choices``) are then packed greedily.
"""

from collections.abc import Sequence

from ortools.sat.python import cp_model

from planner.errors import NotProvenError
from planner.solver import limits
from planner.solver.feasible.load_patterns import LoadPattern, Members, choice_patterns, group_patterns
from planner.solver.minimise import Settings, best_within, minimise
from planner.solver.problem import Axis, Block, Problem
from planner.solver.restriction import Restriction
from planner.solver.variables import Bool, Linear


def least_missing(problem: Problem) -> tuple[int, Restriction | None]:
    """Return the bytes that any placement misses at least, and groups and choices that may miss no more, if known.

    Raise Infeasible where nothing fits whatever memory there is.
    """
    model = _class_model(problem, elastic=True)
    if model is None:
        return 0, None
    try:
        optimum = minimise(model, model.missing, Settings(limit=limits.COUNT_LIMIT), what="missing bytes")
    except NotProvenError as error:
        return max(0, error.bound_ns or 0), None
    return optimum.value, model.groups_and_choices()


def roomiest(problem: Problem) -> Restriction | None:
    """Return groups and choices that leave much memory, if any are found; they are only to be tried.

    Raise Infeasible where none can have room.
    """
    model = _class_model(problem, elastic=False)
    if model is None:
        return None
    settings = Settings(limit=limits.COUNT_LIMIT)  # never the caller's: the result decides what is tried
    try:
        minimise(model, model.load, settings, what="bytes", mode=best_within(limits.ROOM_LIMIT))
    except NotProvenError:
        return None
    return model.groups_and_choices()


def _class_model(problem: Problem, *, elastic: bool) -> "_ClassModel | None":
    """Return the model; None where hardly any devices are equal, so that counting them is no help."""
    patterns = group_patterns(problem)
    if sum(len(loads) for pattern in patterns for loads in pattern.splits) > limits.MOST_COLUMNS:
        return None
    return _ClassModel(problem, patterns, elastic=elastic)


class _ClassModel:
    """The CP-SAT model of the counts; one method per family of constraints."""

    def __init__(self, problem: Problem, patterns: dict[LoadPattern, list[int]], *, elastic: bool) -> None:
        """``patterns``: with the indices of their groups; ``elastic``: devices may be short of memory."""
        self.problem = problem
        self.patterns = patterns
        self.elastic = elastic
        self.model = cp_model.CpModel()
        self.values: list[int] = []
        self.size = {number: problem.alike.count(number) for number in problem.alike}
        """Devices of each class."""
        self.capacity = dict(zip(problem.alike, problem.capacity_bytes, strict=True))
        """Bytes of one device of each class."""
        self.staged, self.placed, self.wasted, self.busy = (_no_terms(self.size) for _ in range(4))
        """Terms of each class: bytes of stages and of blocks, free bytes of devices that run a stage, their number."""
        self.stages = [self._add_stages(pattern) for pattern in patterns]
        """For each pattern, how many of its groups run, and how many layers of each kind these have."""
        self._add_exclusive_groups()
        for kind, layers in enumerate(zip(*(layers for _, layers in self.stages), strict=True)):
            self.model.add(sum(layers) == problem.layers_of(kind))
        self.choices = [choice_patterns(problem, block) for block in problem.blocks]
        self.on: list[dict[LoadPattern, Bool]] = []
        """For each block, whether its choice has the pattern."""
        for block, choices in zip(problem.blocks, self.choices, strict=True):
            self._add_block(block, choices)
        self.missing = sum(self._add_capacity(number) for number in self.size)
        self.load = sum(sum(terms) for terms in (*self.staged.values(), *self.placed.values()))

    def _int(self, most: int) -> cp_model.IntVar:
        return self.model.new_int_var(0, most, "")

    # ---- stages ----

    def _add_stages(self, pattern: LoadPattern) -> tuple[cp_model.IntVar, list[Linear]]:
        """Add the groups of a pattern; return how many run, and how many layers of each kind they have."""
        problem = self.problem
        runs = self._int(min(problem.layers, *(self.size[number] // count for number, count in pattern.members)))
        loads: list[list[Linear]] = [[nbytes * runs] for nbytes in pattern.once]
        sizes: list[Linear] = []
        for k, (kind, split_loads) in enumerate(zip(problem.kinds, pattern.splits, strict=True)):
            most = problem.layers_of(k)
            layers = [self._int(most) for _ in split_loads]  # divided so, over all groups of the pattern
            sizes.append(sum(layers))
            self.model.add(sum(layers) <= most * runs)
            units: list[Linear] = [self._int(most * kind.units) for _ in pattern.members[1:]]  # on each class
            rest = kind.units * sum(layers) - sum(units)
            self.model.add(rest >= 0)
            units.append(rest)
            for j, terms in enumerate(loads):
                terms.append(kind.unit_bytes * units[j])
                terms += [count * split_load[j] for count, split_load in zip(layers, split_loads, strict=True)]
        self.model.add(sum(sizes) >= runs)  # each has a layer at least
        for (number, count), terms in zip(pattern.members, loads, strict=True):
            self._add_members(number, count, runs, terms)
        self._add_whole_layers(pattern, runs, sizes)
        return runs, sizes

    def _add_members(self, number: int, count: int, runs: cp_model.IntVar, terms: Sequence[Linear]) -> None:
        """Count the bytes ``terms`` of ``runs`` groups with ``count`` members of a class each, and what they waste."""
        free = self.capacity[number] * count * runs - sum(terms)
        wasted = self._int(self.capacity[number] * self.size[number])
        self.model.add(wasted >= free if self.elastic else wasted == free)
        self.staged[number] += terms
        self.wasted[number].append(wasted)
        self.busy[number].append(count * runs)

    def _add_whole_layers(self, pattern: LoadPattern, runs: cp_model.IntVar, sizes: Sequence[Linear]) -> None:
        """Raise the waste of devices that are alone in their stages to the rest that whole layers leave.

        A device has room for ``most`` layers and a rest: with fewer layers it wastes more, so over all of them
        waste >= rest · ((most + 1) · runs - layers).
        """
        if len(pattern.members) > 1 or pattern.members[0][1] > 1 or len(pattern.splits) > 1:
            return
        ((number, _),), (split_loads,), (kind,) = pattern.members, pattern.splits, self.problem.kinds
        room = self.capacity[number] - pattern.once[0]
        if len(split_loads) == 1 and room > 0:
            most, rest = divmod(room, split_loads[0][0] + kind.units * kind.unit_bytes)
            self.model.add(self.wasted[number][-1] >= rest * ((most + 1) * runs - sizes[0]))

    def _add_exclusive_groups(self) -> None:
        """Let one of the patterns run of which all groups have the same device: over several hosts, and whole hosts."""
        holders: dict[int, list[cp_model.IntVar]] = {}
        for (runs, _), groups in zip(self.stages, self.patterns.values(), strict=True):
            for device in set.intersection(*(set(self.problem.groups[index].devices) for index in groups)):
                holders.setdefault(device, []).append(runs)
        for variables in holders.values():
            self.model.add(sum(variables) <= 1)

    # ---- blocks ----

    def _add_block(self, block: Block, choices: dict[LoadPattern, list[tuple[int, int]]]) -> None:
        on = {pattern: self.model.new_bool_var("") for pattern in choices}
        self.model.add_exactly_one(on.values())
        holders: dict[int, list[Bool]] = {}
        for pattern, chosen in on.items():
            for (number, _), nbytes in zip(pattern.members, pattern.once, strict=True):
                holders.setdefault(number, []).append(chosen)
                self.placed[number].append(nbytes * chosen)
        self.on.append(on)
        for axis in block.axes:
            is_shared = self._same_members(0 if axis.shared == "first" else 1) if axis.shared else 0
            pieces = {number: self._int(axis.count) for number in holders}  # on each class
            self.model.add(sum(pieces.values()) == axis.count * (1 - is_shared))
            for number, count in pieces.items():
                self.model.add(count <= axis.count * sum(holders[number]))
                held = self._held(axis, number, count) if axis.shared else count
                self.placed[number].append(axis.each_bytes * held)
            if any(axis.read_bytes):
                for number, count in (self._read(axis, pieces, holders) if axis.shared else pieces).items():
                    self.placed[number].append(axis.read_bytes[self.problem.alike.index(number)] * count)

    def _read(
        self, axis: Axis, own: dict[int, cp_model.IntVar], holders: dict[int, list[Bool]]
    ) -> dict[int, cp_model.IntVar]:
        """Return the pieces of a shared axis that each class reads: its ``own``, or another block's, divided anyhow."""
        read = {number: self._int(axis.count) for number in own}
        self.model.add(sum(read.values()) == axis.count)
        for number, count in read.items():
            self.model.add(count >= own[number])
            self.model.add(count <= axis.count * sum(holders[number]))
        return read

    def _held(self, axis: Axis, number: int, count: cp_model.IntVar) -> cp_model.IntVar:
        """Return the pieces of a shared axis that take bytes on a class: maybe none where its owner is alone there."""
        held, owner = self._int(axis.count), self.on[0 if axis.shared == "first" else 1]
        alone = sum(chosen for pattern, chosen in owner.items() if pattern.members == ((number, 1),))
        self.model.add(held >= count - axis.count * alone)
        return held

    def _same_members(self, other: int) -> Linear:
        """Return whether the block added last may be on the devices of an earlier one, from its members."""
        mine, theirs = _by_members(self.on[-1]), _by_members(self.on[other])
        both = []
        for members in sorted(mine.keys() & theirs.keys()):
            same = self.model.new_bool_var("")
            self.model.add(same <= sum(mine[members]))
            self.model.add(same <= sum(theirs[members]))
            both.append(same)
        return sum(both)

    # ---- memory ----

    def _add_capacity(self, number: int) -> Linear:
        """Bound the bytes of a class; return those that its devices have too few, 0 unless the model is elastic."""
        all_bytes = self.capacity[number] * self.size[number]
        idle = self.size[number] - sum(self.busy[number])
        self.model.add(idle >= 0)
        placed = sum(self.placed[number])
        if not self.elastic:
            self.model.add(sum(self.staged[number]) + placed <= all_bytes)
            return 0
        unfilled = self._int(all_bytes)
        self.model.add(unfilled >= sum(self.wasted[number]) + self.capacity[number] * idle - placed)
        return sum(self.staged[number]) + placed + unfilled - all_bytes

    # ---- the solution ----

    def groups_and_choices(self) -> Restriction | None:
        """Return as many disjoint groups of each pattern as run, and the choices of the patterns that blocks have.

        Groups are taken in order, patterns of few groups first; None where that finds too few.
        """
        problem, taken, groups = self.problem, set[int](), list[int]()
        counts = [
            (self.values[runs.index], members)
            for (runs, _), members in zip(self.stages, self.patterns.values(), strict=True)
        ]
        for count, members in sorted(counts, key=lambda pair: len(pair[1])):
            for index in members:
                if count and not taken & set(problem.groups[index].devices):
                    taken |= set(problem.groups[index].devices)
                    groups.append(index)
                    count -= 1
            if count:
                return None
        choices = tuple(
            tuple(key for pattern, keys in known.items() if self.values[on[pattern].index] for key in keys)
            for known, on in zip(self.choices, self.on, strict=True)
        )
        return Restriction(groups=tuple(sorted(groups)), choices=choices)


def _no_terms(classes: dict[int, int]) -> dict[int, list[Linear]]:
    return {number: [] for number in classes}


def _by_members(on: dict[LoadPattern, Bool]) -> dict[Members, list[Bool]]:
    chosen: dict[Members, list[Bool]] = {}
    for pattern, variable in on.items():
        chosen.setdefault(pattern.members, []).append(variable)
    return chosen
