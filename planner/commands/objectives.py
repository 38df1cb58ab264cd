"""The lines of ``-vv`` of ``build`` and ``check``: each objective of the solver with its proven bound."""

from planner.solver.solve import Solved


def objective_lines(solved: Solved) -> list[str]:
    """Return a heading and one line per objective: its value (negative where it is maximised), bound and time."""
    lines = [
        f"  {optimum.what:<12} {optimum.value:>20} bound {optimum.bound:>20} {optimum.seconds:>8.3f} s"
        for optimum in solved.optima
    ]
    return ["Objectives, in the order in which they were minimised", *lines]
