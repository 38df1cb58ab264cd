"""Builds the refusal of a problem that has no placement, from the shortage that the solver proves."""

from planner.errors import InfeasibleError
from planner.solver import limits
from planner.solver.feasible.shortage import shortage
from planner.solver.minimise import Settings
from planner.solver.problem import Problem
from plans.format import format_bytes


def infeasible(problem: Problem, settings: Settings) -> InfeasibleError:
    """Return the refusal of an infeasible problem, with the bytes that each device is short of.

    They are those of the best packing; of a good one, with a lower bound, where the proof exceeds its budget.
    """
    short = shortage(problem, min(settings.limit, limits.SHORTAGE_LIMIT))
    least = short.least_bytes
    fits = "no placement fits"
    if problem.most_devices is not None:
        fits += f" on {problem.most_devices} device{'s' if problem.most_devices > 1 else ''}, the most in use"
    at_least = f"at least {format_bytes(least)} short in all ({least} bytes)"
    if short.missing is None:
        amount = at_least if least else "how many bytes are short is not known"
        return InfeasibleError(f"{fits}: {amount}", {}, least)
    total = sum(short.missing)
    amount, packing = f"{format_bytes(total)} short in all ({total} bytes)", "the best packing"
    if total > least:
        amount, packing = f"{at_least}; at most {amount}", "the best packing that was found"
    missing = {name: nbytes for name, nbytes in zip(problem.devices, short.missing, strict=True) if nbytes}
    capacity = dict(zip(problem.devices, problem.capacity_bytes, strict=True))
    lines = [
        f"  {name}: {format_bytes(nbytes)} short, {format_bytes(capacity[name] + nbytes)} wanted of "
        f"{format_bytes(capacity[name])} ({nbytes} bytes)"
        for name, nbytes in missing.items()
    ]
    return InfeasibleError(f"{fits}: {amount} under {packing}:\n" + "\n".join(lines), missing, least)
