"""Bounds of block choices: one that is computed once for several options is that of each of them."""

import random
from dataclasses import replace

import numpy as np
import pytest

from planner.solver.bounds.block_choices import choices_ns
from planner.solver.problem import Block
from tests.planner.tiny_problems import tiny_problem


@pytest.mark.parametrize("priced", [True, False])
def test_an_option_has_the_bound_that_it_has_alone(priced: bool) -> None:
    """Also among options on devices that differ in nothing but the bytes beside the pieces that they read."""
    for seed in range(60):
        problem, rng = tiny_problem(seed), random.Random(seed)
        prices = np.full(len(problem.devices), 3.0 if priced else 0.0)
        own = tuple(rng.choice((0, 40)) for _ in problem.devices)
        for block in problem.blocks:
            axes = tuple(replace(axis, read_bytes=own, each_ps=(axis.each_ps[0],) * len(own)) for axis in block.axes)
            bounds = choices_ns(Block(options=block.options, axes=axes), prices)
            for o, option in enumerate(block.options):
                alone = choices_ns(Block(options=(option,), axes=axes), prices)
                assert [bounds[o, c] for c in range(len(option.splits))] == list(alone.values()), f"seed {seed}"
