"""More never makes the optimum worse: candidates of problems, memory and devices of machines."""

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from planner.solver.minimise import Settings
from planner.solver.problem import Block, Group, Option, Problem
from planner.solver.solve import solve
from tests.planner.instances import formulation, gpu, host
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


def _machine(rng: random.Random) -> Any:
    """Return two or three hosts with one to three devices of two types, quick links, and little memory."""
    rates = (
        {"bandwidth": "2 GB/s", "flops": "1 TFLOP/s", "overhead": "5 us"},
        {"bandwidth": "4 GB/s", "flops": "1 TFLOP/s"},
    )
    kib = rng.choice((14_000, 20_000))
    types = [0] * rng.randint(1, 2) + [1] * rng.randint(0, 1)
    hosts = [
        host(f"h{h}", *(gpu(f"h{h}g{n}", kib, **rates[kind]) for n, kind in enumerate(types)), links={"class": "pcie"})
        for h in range(rng.randint(2, 3))
    ]
    return {"hosts": hosts, "network": {"class": "infiniband", "latency": "2 us"}}


@pytest.mark.parametrize("seed", range(12))
def test_more_memory_or_another_device_never_makes_a_step_longer(seed: int) -> None:
    rng = random.Random(seed)
    data = _machine(rng)
    more = copy.deepcopy(data)
    devices = more["hosts"][rng.randrange(len(more["hosts"]))]["devices"]
    if rng.random() < 0.5:
        grown = rng.choice(devices)
        grown["memory"] = f"{int(grown['memory'].split()[0]) + 512} KiB"
    else:
        devices.append(gpu("more", 20_000, bandwidth="1 GB/s", flops="1 TFLOP/s"))
    objectives = []
    for machine in (data, more):
        problem = formulation(machine, None).problem
        solved = solve(replace(problem, simplify_ppm=0), Settings(workers=1))
        objectives.append(float("inf") if solved is None else solved.objective_ns)
    assert objectives[1] <= objectives[0]
