"""Groups and choices on which a greedy packing fits, if counting equal devices finds such."""

from planner.solver.feasible.class_model import roomiest
from planner.solver.feasible.greedy import packed
from planner.solver.problem import Problem
from planner.solver.restriction import Restriction


def roomy(problem: Problem) -> Restriction | None:
    """Return a structure that a greedy packing fits on, if one is found; raise Infeasible where none can have room."""
    structure = roomiest(problem)
    missing = packed(problem, structure) if structure else None
    return None if missing is None or any(missing) else structure
