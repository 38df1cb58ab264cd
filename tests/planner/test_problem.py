"""The problem is a value: integers and names only, the same for the same inputs, and written and read back."""

import json
from typing import Any

from planner.problem import Problem
from plans.codec import decode, encode
from tests.planner.instances import UNLIKE, formulation


def leaves(value: Any) -> set[type]:
    if isinstance(value, dict):
        return set().union(*map(leaves, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(leaves, value)) if value else set()
    return {type(value)}


def test_a_problem_is_integers_and_names() -> None:
    for head in ("eagle3", "eagle1", None):
        problem = formulation(UNLIKE, head).problem
        assert leaves(encode(problem)) <= {int, bool, str, type(None)}
        assert hash(problem) == hash(formulation(UNLIKE, head).problem)


def test_a_problem_is_serialisable() -> None:
    problem = formulation(UNLIKE, "eagle3").problem
    assert decode(Problem, json.loads(json.dumps(encode(problem))), "problem") == problem
