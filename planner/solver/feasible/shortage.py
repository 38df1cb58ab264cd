"""Missing memory where nothing fits: how many bytes at least, and on which devices under the best known packing."""

from dataclasses import dataclass

from planner.errors import NotProvenError
from planner.solver.feasible.class_model import least_missing
from planner.solver.feasible.greedy import packed
from planner.solver.minimise import Infeasible, Settings, best_within, minimise
from planner.solver.model import Model
from planner.solver.problem import Problem
from planner.solver.problem_bounds import least_bytes, room_bytes
from planner.solver.restriction import everything


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortage:
    """The bytes that are missing for any placement to exist."""

    least_bytes: int
    """Proven lower bound of the sum over all devices."""
    missing: tuple[int, ...] | None
    """Bytes that each device misses under a packing, the best one if they add up to ``least_bytes``; None: none was
    found."""


def shortage(problem: Problem, limit: float) -> Shortage:
    """Return a lower bound of the missing bytes, and a packing that misses as few as could be found.

    Equal devices are counted first, and a greedy packing of these counts is tried; where the two differ, all packings
    are searched within the budget ``limit``. Several packings may miss equally little, and to order them all takes
    minutes: so that search is always the same, and which packing it ends with is up to it.
    """
    least = max(0, least_bytes(problem) - room_bytes(problem))
    try:
        counted, structure = least_missing(problem)
    except Infeasible:  # whatever memory there were
        return Shortage(least_bytes=least, missing=None)
    least = max(least, counted)
    packing = packed(problem, structure) if structure else None
    if packing is not None and sum(packing) == least:
        return Shortage(least_bytes=least, missing=packing)
    # A search from below proves much and finds little: where no packing is known, another one follows it.
    for from_below in (True, False) if packing is None else (True,):
        try:
            bound, best = _searched(problem, least, limit, from_below)
        except (Infeasible, NotProvenError):
            continue
        least = max(least, bound)
        packing = best if packing is None else min(packing, best, key=sum)
        break
    return Shortage(least_bytes=least, missing=packing)


def _searched(problem: Problem, least: int, limit: float, from_below: bool) -> tuple[int, tuple[int, ...]]:
    """Return the bound that is proven of all packings, and the best that was found."""
    model = Model(problem, everything(problem), elastic=True)
    missing = sum(model.memory.short)
    model.model.add(missing >= least)
    best = minimise(model, missing, Settings(), what="missing bytes", mode=best_within(limit, from_below=from_below))
    return best.bound, tuple(model.value(variable) for variable in model.memory.short)
