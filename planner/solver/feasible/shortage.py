"""Why nothing fits: how many bytes are short, and on which devices, under the packing that misses least."""

from dataclasses import dataclass

from planner.errors import NotProvenError
from planner.solver.feasible.class_model import least_missing
from planner.solver.feasible.greedy import packed
from planner.solver.minimise import Infeasible, Settings, best_within, minimise
from planner.solver.model import Model
from planner.solver.problem import Problem
from planner.solver.problem_bounds import least_bytes
from planner.solver.restriction import everything


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortage:
    """What is missing for any placement to exist."""

    least_bytes: int
    """In all, proven."""
    missing: tuple[int, ...] | None
    """Of each device, under a packing: the best one, if it is ``least_bytes`` in all. None: none was found."""


def shortage(problem: Problem, limit: float) -> Shortage:
    """The least bytes that are missing, in all, for any placement to exist, and a packing that misses as few as known.

    Equal devices are counted first; where that does not settle it, all packings are searched. Which packing it is is a
    matter of the search, and to order all of them to the byte takes minutes: so it is always the same search.
    """
    least = max(0, least_bytes(problem) - sum(problem.capacity_bytes))
    try:
        counted, structure = least_missing(problem)
    except Infeasible:  # whatever memory there were
        return Shortage(least_bytes=least, missing=None)
    least = max(least, counted)
    found = packed(problem, structure) if structure else None
    if found is not None and sum(found) == least:
        return Shortage(least_bytes=least, missing=found)
    for from_below in (True, False) if found is None else (True,):  # the first finds little but proofs
        try:
            bound, packing = _searched(problem, least, limit, from_below)
        except (Infeasible, NotProvenError):
            continue
        least = max(least, bound)
        found = packing if found is None else min(found, packing, key=sum)
        break
    return Shortage(least_bytes=least, missing=found)


def _searched(problem: Problem, least: int, limit: float, from_below: bool) -> tuple[int, tuple[int, ...]]:
    """What is proven of all packings, and the best that was found."""
    model = Model(problem, everything(problem), elastic=True)
    missing = sum(model.short)
    model.model.add(missing >= least)
    best = minimise(model, missing, Settings(), what="missing bytes", mode=best_within(limit, from_below=from_below))
    return best.bound, tuple(model.value(variable) for variable in model.short)
