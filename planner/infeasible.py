"""Builds the refusal of a problem that has no placement, from the shortage that the solver proves."""

from planner.errors import InfeasibleError
from planner.solver import limits
from planner.solver.feasible.shortage import shortage
from planner.solver.minimise import Settings
from planner.solver.problem import Problem
from plans.format import format_bytes


def infeasible(problem: Problem, settings: Settings) -> InfeasibleError:
    """The refusal of an infeasible problem, with its shortage; where that takes long to prove, of a good packing."""
    found = shortage(problem, min(settings.limit, limits.SHORTAGE_LIMIT))
    least = found.least_bytes
    at_least = f"at least {format_bytes(least)} short in all ({least} bytes)"
    if found.missing is None:
        unknown = "how many bytes are short is not known"
        return InfeasibleError(f"no placement fits: {at_least if least else unknown}", {}, least)
    total = sum(found.missing)
    said, packing = f"{format_bytes(total)} short in all ({total} bytes)", "the best packing"
    if total > least:
        said, packing = f"{at_least}; at most {said}", "the best packing that was found"
    short = {name: nbytes for name, nbytes in zip(problem.devices, found.missing, strict=True) if nbytes}
    capacity = dict(zip(problem.devices, problem.capacity_bytes, strict=True))
    lines = [
        f"  {name}: {format_bytes(nbytes)} short, {format_bytes(capacity[name] + nbytes)} wanted of "
        f"{format_bytes(capacity[name])} ({nbytes} bytes)"
        for name, nbytes in short.items()
    ]
    return InfeasibleError(f"no placement fits: {said} under {packing}:\n" + "\n".join(lines), short, least)
