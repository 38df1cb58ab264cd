"""Bounds against answers that are written out or proven: none takes less than what it uses is said to allow."""

from functools import cache
from itertools import count, islice

import pytest

from planner.bounds import Bounds, lower_bounds
from planner.problem import Answer
from tests.planner.every_answer import every_answer, value
from tests.planner.tiny_problems import tiny_answer, tiny_problem


def uses(answer: Answer) -> tuple[set[int], list[tuple[int, int]]]:
    """Groups, and the option and column of each block."""
    blocks = [placed for placed in (answer.first, answer.last, answer.tail) if placed is not None]
    return {stage.group for stage in answer.stages}, [(placed.option, placed.column) for placed in blocks]


@cache
def bounds_of(seed: int) -> Bounds | None:
    return lower_bounds(tiny_problem(seed))


SEEDS = list(islice((seed for seed in count() if bounds_of(seed) is not None), 100))


def is_left(seed: int, answer: Answer, step_ns: int) -> bool:
    bounds = bounds_of(seed)
    assert bounds is not None
    kept = bounds.within(step_ns)
    groups, choices = uses(answer)
    placed = all(choice in known for choice, known in zip(choices, kept.choices, strict=True))
    return groups <= set(kept.groups) and placed and bounds.least <= step_ns


@pytest.mark.parametrize("start", range(0, 100, 25))
def test_the_optimum_is_among_what_is_left_at_its_time(start: int) -> None:
    for seed in SEEDS[start : start + 25]:
        solved = tiny_answer(seed)
        assert solved is None or is_left(seed, solved.answer, solved.objective_ns), f"seed {seed}"


def test_every_answer_that_fits_is_among_what_is_left_at_its_time() -> None:
    seen = 0
    for seed in SEEDS[:60]:
        problem = tiny_problem(seed)
        for number, answer in enumerate(every_answer(problem)):
            if number == 200:
                break
            price = value(problem, answer)
            if price is not None:
                assert is_left(seed, answer, price[-2]), f"seed {seed}: {answer}"
                seen += 1
    assert seen > 500


def test_something_is_left_out() -> None:
    less = 0
    for seed in SEEDS:
        bounds, solved = bounds_of(seed), tiny_answer(seed)
        if bounds is not None and solved is not None:
            less += len(bounds.within(solved.objective_ns).groups) < len(tiny_problem(seed).groups)
    assert less > 40
