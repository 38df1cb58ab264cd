"""More candidates never make the optimum worse: problems from which groups, options and splits were taken at random."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import pytest

from planner.solver.minimise import Settings
from planner.solver.problem import Block, Group, Option, Problem
from planner.solver.solve import solve
from tests.planner.tiny_problems import tiny_problem

Item = TypeVar("Item")


class _Fewer:
    """Leaves some of the candidates of a problem, at least one of each list."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def problem(self, problem: Problem) -> Problem:
        tail = None if problem.tail is None else self.block(problem.tail)
        groups = tuple(map(self.group, self.some(problem.groups)))
        return replace(
            problem, groups=groups, first=self.block(problem.first), last=self.block(problem.last), tail=tail
        )

    def some(self, items: Sequence[Item]) -> tuple[Item, ...]:
        kept = [item for item in items if self.rng.random() < 0.7]
        return tuple(kept or [self.rng.choice(items)]) if items else ()

    def group(self, group: Group) -> Group:
        return replace(group, splits=tuple(self.some(splits) for splits in group.splits))

    def block(self, block: Block) -> Block:
        return replace(block, options=tuple(map(self.option, self.some(block.options))))

    def option(self, option: Option) -> Option:
        return replace(option, splits=self.some(option.splits))


@pytest.mark.parametrize("seed", range(40))
def test_more_candidates_never_give_a_worse_optimum(seed: int) -> None:
    """Three steps from few candidates to all."""
    problem = tiny_problem(seed)
    problem = replace(problem, goal="time", spare=None, counts=None)
    steps = [problem]
    for number in range(3):
        steps.append(_Fewer(1000 * seed + number).problem(steps[-1]))
    objectives = []
    for step in reversed(steps):
        solved = solve(step, Settings(workers=1))
        objectives.append(float("inf") if solved is None else solved.objective_ns)
    assert objectives == sorted(objectives, reverse=True)
