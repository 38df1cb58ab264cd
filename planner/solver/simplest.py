"""Finds the simplest of the answers that are nearly as fast as any: the fewest devices, then the fewest runs of layers.

The bounds leave few groups and choices for answers within a small part of the least step, so that both are settled on
small models. Most often counting bytes and time shows that no answer has fewer devices than the fastest one.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

from planner.errors import NotProvenError
from planner.solver import limits
from planner.solver.bounds.in_use import in_use
from planner.solver.minimise import Infeasible, best_within
from planner.solver.model import Model
from planner.solver.problem import Problem
from planner.solver.problem_bounds import least_bytes, least_layer_bytes
from planner.solver.restriction import Restriction
from planner.solver.runs import least_runs, used_splits
from planner.solver.search import Progress
from planner.solver.solution import chosen
from planner.solver.ties import Near
from planner.solver.variables import Linear


def fewest_devices(progress: Progress, near: Near, known: int | None) -> tuple[Near, int]:
    """Return the answers with the fewest devices in use, and how many these are; past a budget, with as few as found.

    ``known``: those of one of the answers, if one is known.
    """
    problem = near.space.problem
    if known is None:
        model = near.model()
        bound = known = progress.minimise(model, devices(model), what="devices in use").value
    else:
        bound = min(known, least_devices(problem, near.restriction))
        if bound < known:
            bound = max(bound, in_use(problem, ()).fewest_devices(near.most_ns, known))
        if bound < known:
            known, bound = _fewer_devices(progress, near, known, bound)
    restriction = with_at_most(problem, near.restriction, known)
    few = near.where(lambda model: model.model.add(devices(model) <= known))
    return replace(few, restriction=restriction, devices_bound=bound), known


def _fewer_devices(progress: Progress, near: Near, known: int, bound: int) -> tuple[int, int]:
    """Return the fewest devices that a search within its budget finds, ``known`` where it finds none, and a bound."""
    model = near.model()
    try:
        mode = best_within(limits.DEVICES_LIMIT)
        fewest = progress.minimise(model, devices(model), what="devices in use", mode=mode)
    except NotProvenError:
        return known, bound
    return min(known, fewest.value), max(bound, fewest.bound)


def devices(model: Model) -> Linear:
    """Return the number of devices in use."""
    return sum(model.use.used)


def least_stages(problem: Problem, restriction: Restriction) -> int:
    """Return how many of the device sets with the most memory it takes to have enough for all layers."""
    sets = {problem.groups[g].devices for g in restriction.groups}
    return enough([sum(problem.capacity_bytes[d] for d in devices) for devices in sets], least_layer_bytes(problem))


def least_devices(problem: Problem, restriction: Restriction) -> int:
    """Return devices that any answer of these groups has in use, by its memory.

    They are those of a group with room for all layers or of two groups, and have the memory for the whole model.
    """
    layers = least_layer_bytes(problem)
    groups = [problem.groups[g] for g in restriction.groups]
    sizes = sorted(len(group.devices) for group in groups)
    alone = [len(group.devices) for group in groups if sum(problem.capacity_bytes[d] for d in group.devices) >= layers]
    in_groups = min([*alone, sum(sizes[:2])] if len(sizes) > 1 else [*alone, *sizes])
    return max(in_groups, enough(problem.capacity_bytes, least_bytes(problem)))


def enough(rooms: Iterable[int], needed: int) -> int:
    """Return how many of the largest rooms have so much in sum; all where these have not."""
    sums = list(accumulate(sorted(rooms, reverse=True)))
    return min(bisect_left(sums, needed) + 1, len(sums))


def with_at_most(problem: Problem, restriction: Restriction, count: int) -> Restriction:
    """Return the groups on no more devices than that, and the choices that have no more together with one of them."""
    groups = tuple(g for g in restriction.groups if len(problem.groups[g].devices) <= count)
    device_sets = {frozenset(problem.groups[g].devices) for g in groups}
    choices = []
    for block, known in zip(problem.blocks, restriction.choices, strict=True):
        fits = [any(len(devices.union(option.devices)) <= count for devices in device_sets) for option in block.options]
        choices.append(tuple((o, c) for o, c in known if fits[o]))
    return replace(restriction, groups=groups, choices=tuple(choices))


def fewest_runs(progress: Progress, near: Near, fastest: Model | None) -> tuple[Near, int]:
    """Return the answers with the fewest runs of layers, and the least step time among them.

    ``fastest``: with a solution that takes least of all answers, if it has as few devices in use.
    Numbers of runs are tried in turn, from the least that counting allows. A try that is not decided within its budget
    is passed over; after limits.RUNS_TRIES such ones the answers have the runs that dealing out their shares gives.
    """
    problem = near.space.problem
    least = least_runs(problem, least_stages(problem, near.restriction))
    if fastest is not None and _dealt_alike(fastest) == least:
        few = near.where(_RunsAtMost(most=least, least=least))
        return replace(few, runs_bound=least), fastest.value(fastest.step_ns)
    most, bound, undecided = least, least, 0
    while undecided < limits.RUNS_TRIES and most < least + limits.MOST_RUNS:
        few = near.where(_RunsAtMost(most=most, least=least))
        model = few.model()
        try:
            limit = limits.FEWEST_RUNS_LIMIT if most == least else limits.RUNS_LIMIT
            step = progress.minimise(model, model.step_ns, what="step time", mode=best_within(limit))
        except Infeasible:
            excluded = True
        except NotProvenError:
            excluded = False
            undecided += 1
        else:
            few = replace(few, least_ns=step.bound, runs_bound=bound)
            if step.bound < step.value:  # then ties among other groups and choices are not worth a search
                few = replace(few, restriction=chosen(model), tie_limit=limits.SHORT_TIE_LIMIT)
            return few, step.value
        splits = _fewest_splits(progress, near) if most == least else 0
        bound = max(bound, splits, most + 1 if excluded and bound == most else 0)
        most = max(most + 1, splits)
    near = replace(near, runs_bound=bound)
    if fastest is not None:
        return replace(near, known=lambda: chosen(fastest)), fastest.value(fastest.step_ns)
    model = near.model()
    return near, progress.minimise(model, model.step_ns, what="step time").value


def _dealt_alike(model: Model) -> int | None:
    """Return the runs of a solution in which each stage can deal its layers of each kind out alike; else None."""
    runs = 0
    for kinds, units in zip(model.stages.layers, model.stages.units, strict=True):
        for counts, of_members in zip(kinds, units, strict=True):
            used = [layers for layers in map(model.value, counts) if layers]
            if len(used) > 1 or any(model.value(total) % layers for layers in used for total in of_members):
                return None
            runs += len(used)
    return runs


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunsAtMost:
    """The condition that all stages together have few runs; ``least``: a number that none has less than."""

    most: int
    least: int

    def __call__(self, model: Model) -> None:
        model.add_runs(self.most, self.least)


def _fewest_splits(progress: Progress, near: Near) -> int:
    """Return a number of splits that any answer has in use at least; 0 where none is proven."""
    model = near.model()
    splits = used_splits(model.model, model.stages)
    try:
        return progress.minimise(model, splits, what="splits in use", mode=best_within(limits.RUNS_LIMIT)).bound
    except NotProvenError:
        return 0
