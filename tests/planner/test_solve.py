"""The solver against every answer of tiny problems, and what it promises beside the optimum."""

import dataclasses
from functools import cache

import pytest

from planner.certify import certify, devices_in_use
from planner.errors import NotProvenError
from planner.problem import Problem
from planner.solve import Settings, Solved, shortfall, solve
from tests.planner.brute_force import best, splits
from tests.planner.tiny_problems import tiny_problem

ONE = Settings(workers=1)


@cache
def _solved(seed: int) -> Solved | None:
    return solve(tiny_problem(seed), ONE)


def _more(problem: Problem, nbytes: tuple[int, ...]) -> Problem:
    capacity = tuple(map(sum, zip(problem.capacity_bytes, nbytes, strict=True)))
    return dataclasses.replace(problem, capacity_bytes=capacity)


@pytest.mark.parametrize("start", range(0, 80, 10))
def test_nothing_is_better_and_nothing_that_fits_is_missed(start: int) -> None:
    for seed in range(start, start + 10):
        problem = tiny_problem(seed)
        expected, solved = best(problem), _solved(seed)
        if expected is None or solved is None:
            assert expected is None, f"seed {seed}: {expected} is possible"
            assert solved is None, f"seed {seed}: {solved} does not fit"
            continue
        assert (solved.objective_ns, len(solved.answer.stages)) == expected, f"seed {seed}"
        assert solved.bound_ns == solved.objective_ns
        certificate = certify(problem, solved.answer)
        assert certificate.step_ns == solved.objective_ns
        assert all(map(int.__le__, certificate.load_bytes, problem.capacity_bytes))
        assert certificate.free_bytes(problem, solved.answer) >= 0


def test_the_random_problems_are_of_every_kind() -> None:
    problems = [tiny_problem(seed) for seed in range(80)]
    solved = [_solved(seed) for seed in range(80)]
    assert sum(answer is None for answer in solved) >= 5
    assert sum(answer is not None and len(answer.answer.stages) > 1 for answer in solved) >= 5
    tails = [problem.tail for problem in problems if problem.tail]
    assert 20 <= len(tails) <= 70
    for flag in (True, False):
        assert any(tail.shares_first == flag for tail in tails)
        assert any(tail.shares_last == flag for tail in tails)
    answers = [answer.answer.tail for answer in solved if answer and answer.answer.tail]
    assert any(tail.first_rows is None for tail in answers)
    assert any(tail.last_rows is None for tail in answers)
    assert any(len(problem.hosts) == 2 for problem in problems)


@pytest.mark.parametrize("seed", [0, 5, 7, 29])
def test_one_answer_whatever_the_search(seed: int) -> None:
    problem = tiny_problem(seed)
    answers = [solve(problem, Settings(workers=workers, seed=number)) for workers in (1, 2) for number in (0, 1, 12345)]
    assert len({None if solved is None else solved.answer for solved in answers}) == 1


def test_with_a_gap_the_answer_is_certified_and_does_not_depend_on_seed_or_workers() -> None:
    for seed in range(12):
        problem = tiny_problem(seed)
        exact = _solved(seed)
        rough = [solve(problem, Settings(workers=w, seed=s, gap_ppm=500_000)) for w, s in ((1, 0), (2, 7))]
        if exact is None:
            assert rough == [None, None]
            continue
        assert rough[0] is not None
        assert rough[1] is not None
        assert rough[0].answer == rough[1].answer
        step = certify(problem, rough[0].answer).step_ns
        assert rough[0].bound_ns <= exact.objective_ns <= step <= rough[0].objective_ns
        assert step - rough[0].bound_ns <= 0.5 * step


def test_free_memory_is_as_even_as_the_best_time_allows() -> None:
    """Of two devices with rows that cost no time, no other division leaves more on the fuller one."""
    checked = 0
    for seed in range(80):
        problem, solved = tiny_problem(seed), _solved(seed)
        if solved is None or problem.tail is not None or len(problem.groups[solved.answer.stages[0].group].devices) < 2:
            continue
        certificate = certify(problem, solved.answer)
        members = problem.groups[solved.answer.stages[0].group].devices
        others = [d for d in devices_in_use(problem, solved.answer) if d not in members]
        free = [problem.capacity_bytes[d] - certificate.load_bytes[d] for d in range(len(problem.devices))]
        for rows in splits(problem.first_rows, len(members)):
            moved = zip(members, rows, solved.answer.first_rows, strict=True)
            there = [free[d] - (new - old) * problem.first_row_bytes for d, new, old in moved]
            assert min(there + [free[d] for d in others]) <= certificate.free_bytes(problem, solved.answer)
        checked += 1
    assert checked >= 3


def test_missing_bytes_are_the_least_there_are() -> None:
    """With what is missing something fits, with a byte less of any device's share nothing does."""
    checked = 0
    for seed in range(80):
        problem = tiny_problem(seed)
        if _solved(seed) is not None or checked >= 12 or len(problem.devices) > 3:
            continue
        short = shortfall(problem, ONE)
        assert sum(short) > 0
        assert best(_more(problem, short)) is not None
        for device, nbytes in enumerate(short):
            if nbytes:
                less = tuple(n - (d == device) for d, n in enumerate(short))
                assert best(_more(problem, less)) is None
                checked += 1
    assert checked >= 5


def test_nothing_is_missing_where_something_fits() -> None:
    seed = next(seed for seed in range(80) if _solved(seed) is not None)
    problem = tiny_problem(seed)
    assert shortfall(problem, ONE) == (0,) * len(problem.devices)


def test_the_limit_ends_in_a_refusal_with_the_gap() -> None:
    with pytest.raises(NotProvenError, match="deterministic limit of 0") as refused:
        solve(tiny_problem(0), Settings(limit=0.0))
    assert refused.value.exit_code == 3
    assert (refused.value.objective_ns, refused.value.gap) == (None, None)


def test_what_is_known_at_the_limit_encloses_the_optimum() -> None:
    problem = tiny_problem(next(seed for seed in range(80) if _solved(seed) is not None))
    solved = solve(problem, ONE)
    assert solved is not None
    gaps = []
    for limit in (0.0001 * 2**n for n in range(16)):
        try:
            assert solve(problem, Settings(limit=limit)) is not None
        except NotProvenError as error:
            bound, found = error.bound_ns, error.objective_ns
            assert bound is None or bound <= solved.objective_ns
            assert found is None or found >= solved.objective_ns
            gaps += [error.gap] if error.gap is not None else []
    assert all(0 <= gap < 1 for gap in gaps)
    assert gaps, "none of these limits is past a first placement and before the last proof"
