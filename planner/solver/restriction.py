"""A subset of a problem's groups and block choices."""

from dataclasses import dataclass

from planner.solver.problem import Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Restriction:
    """Part of a problem: its groups, and of each block pairs of an option and a split of it, all by index."""

    groups: tuple[int, ...]
    choices: tuple[tuple[tuple[int, int], ...], ...]


def everything(problem: Problem) -> Restriction:
    """No restriction."""
    return Restriction(
        groups=tuple(range(len(problem.groups))),
        choices=tuple(
            tuple((o, c) for o, option in enumerate(block.options) for c in range(len(option.splits)))
            for block in problem.blocks
        ),
    )
