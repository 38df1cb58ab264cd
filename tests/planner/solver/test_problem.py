"""The problem is a value: integers and names only, equal for equal inputs, serialisable."""

import dataclasses
import json
from itertools import islice
from typing import Any

import pytest

from planner.solver.problem import Problem, granule_bytes
from planner.solver.problem_bounds import least_bytes, most_bytes, most_ps
from plans.codec import decode, encode
from tests.planner.every_answer import every_answer, load_bytes, step_ns
from tests.planner.tiny_problems import tiny_problem


def leaves(value: Any) -> set[type]:
    if isinstance(value, dict):
        return set().union(*map(leaves, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(leaves, value)) if value else set()
    return {type(value)}


def test_a_problem_is_integers_and_names() -> None:
    from tests.planner.instances import UNLIKE, formulation

    for head in ("eagle3", "eagle1", None):
        problem = formulation(UNLIKE, head).problem
        assert leaves(encode(problem)) <= {int, bool, str, type(None)}
        assert hash(problem) == hash(formulation(UNLIKE, head).problem)


def test_a_problem_is_serialisable() -> None:
    from tests.planner.instances import UNLIKE, formulation

    problem = formulation(UNLIKE, "eagle3").problem
    assert decode(Problem, json.loads(json.dumps(encode(problem))), "problem") == problem


def test_every_field_is_serialisable() -> None:
    for seed in range(40):
        problem = tiny_problem(seed)
        assert leaves(encode(problem)) <= {int, bool, str, type(None)}
        assert decode(Problem, json.loads(json.dumps(encode(problem))), "problem") == problem
        assert hash(problem) == hash(tiny_problem(seed))


def test_answers_are_within_the_bounds_of_bytes_and_time() -> None:
    for seed in range(40):
        problem = tiny_problem(seed)
        for answer in islice(every_answer(problem), 0, 1000, 20):
            assert max(load_bytes(problem, answer)) <= most_bytes(problem)
            assert least_bytes(problem) <= sum(load_bytes(problem, answer))
            assert 1000 * step_ns(problem, answer) <= most_ps(problem)


def test_layers_are_counted() -> None:
    problem = dataclasses.replace(tiny_problem(0), sequence=((0, 2), (1, 3), (0, 4)))
    assert (problem.layers, problem.layers_of(0), problem.layers_of(1)) == (9, 6, 3)


@pytest.mark.parametrize(
    ("capacity", "granule"), [((1,), 1), ((7, 4095), 1), ((4096, 1), 2), ((8192,), 4), ((80 << 30,), 32 << 20)]
)
def test_the_largest_capacity_has_at_most_4096_granules(capacity: tuple[int, ...], granule: int) -> None:
    assert granule_bytes(dataclasses.replace(tiny_problem(0), capacity_bytes=capacity)) == granule
    assert max(capacity) // granule < 4096
