"""Why nothing fits: how many bytes are short, and on which devices, under the packing that misses least."""

from planner.errors import InfeasibleError, NotProvenError
from planner.problem import Problem
from planner.solve import Settings, shortfall
from plans.diff import format_bytes


def infeasible(problem: Problem, settings: Settings) -> InfeasibleError:
    """The refusal of an infeasible problem; without the bytes where the least shortage could not be proven."""
    try:
        short = dict(zip(problem.devices, shortfall(problem, settings), strict=True))
    except NotProvenError as error:
        return InfeasibleError(f"no placement fits; how many bytes are short is not known: {error}", {})
    capacity = dict(zip(problem.devices, problem.capacity_bytes, strict=True))
    lines = [
        f"  {name}: {format_bytes(nbytes)} short, {format_bytes(capacity[name] + nbytes)} wanted of "
        f"{format_bytes(capacity[name])} ({nbytes} bytes)"
        for name, nbytes in short.items()
        if nbytes
    ]
    total = sum(short.values())
    return InfeasibleError(
        f"no placement fits: {format_bytes(total)} short in all ({total} bytes) under the best packing:\n"
        + "\n".join(lines),
        {name: nbytes for name, nbytes in short.items() if nbytes},
    )
