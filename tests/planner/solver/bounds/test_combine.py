"""Combining the bounds of stages: exact by layer counts, compared with all divisions; a lower bound by layer prices."""

import math
from itertools import islice, product

import numpy as np

from planner.solver.bounds.combine import ByLayers, ByPrice, Sums
from planner.solver.bounds.stage import StageBound
from planner.solver.problem import Problem
from tests.planner.tiny_problems import tiny_problem


def stages_of(problem: Problem) -> list[StageBound]:
    """Return the bounds of at most three groups that can run layers, with zero memory prices."""
    bounds = (StageBound(problem, group, np.zeros(len(problem.devices))) for group in problem.groups)
    return list(islice((stage for stage in bounds if stage.most_layers), 3))


def least(sums: Sums, stages: list[StageBound]) -> float:
    """Return the least time in ns of all layers on these stages; a stage may have no layers."""
    curves = [np.minimum(sums.curve(stage), sums.no_layers()) for stage in stages]
    together = sums.no_layers()
    for curve in curves[:-1]:
        together = sums.plus(together, sums.spread(curve))
    return sums.all_layers(together, curves[-1])


def least_by_enumeration(stages: list[StageBound], layers: int) -> float:
    """Return the same minimum by trying every division of the layers."""
    divisions = (n for n in product(range(layers + 1), repeat=len(stages)) if sum(n) == layers)
    return min(
        sum(stage.curve[n] if n else 0.0 for stage, n in zip(stages, division, strict=True)) for division in divisions
    )


def test_by_layers_is_exact_and_by_price_is_below_it() -> None:
    seen = 0
    for seed in range(120):
        problem = tiny_problem(seed)
        if len(problem.kinds) > 1:
            continue
        stages = stages_of(problem)
        slopes = [stage.line.mean for stage in stages]
        if not stages or min(slopes) <= 0:
            continue
        expected = least_by_enumeration(stages, problem.layers)
        assert least(ByLayers(problem.layers), stages) == expected, f"seed {seed}"
        by_price = least(ByPrice(problem.layers, min(slopes)), stages)
        assert by_price <= expected
        seen += math.isfinite(expected) and by_price > 0.8 * expected
    assert seen >= 20
