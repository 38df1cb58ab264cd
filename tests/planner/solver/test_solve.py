"""The solver against brute force over tiny problems, and its guarantees on gaps, limits and missing bytes."""

import dataclasses

import pytest

from planner.errors import NotProvenError
from planner.solver import limits
from planner.solver.certify import certify
from planner.solver.feasible.shortage import shortage
from planner.solver.minimise import Settings
from planner.solver.problem import Answer, Problem
from planner.solver.solve import fits, solve, takes_longer
from tests.planner.brute_force import Value, best, goal_value
from tests.planner.tiny_problems import tiny_answer, tiny_problem

ONE = Settings(workers=1)
CHUNK = 25
SEEDS = range(300)


def _value(problem: Problem, answer: Answer) -> Value:
    layers = [0] * len(problem.groups)
    for stage in answer.stages:
        layers[stage.group] = stage.num_layers
    certificate = certify(problem, answer)
    return (*goal_value(problem, certificate.load_bytes, layers), certificate.step_ns, len(answer.stages))


def _with_more_bytes(problem: Problem, nbytes: tuple[int, ...]) -> Problem:
    capacity = tuple(map(sum, zip(problem.capacity_bytes, nbytes, strict=True)))
    return dataclasses.replace(problem, capacity_bytes=capacity)


@pytest.mark.parametrize("start", SEEDS[::CHUNK])
def test_the_solver_finds_the_optimum_or_proves_that_nothing_fits(start: int) -> None:
    for seed in SEEDS[start : start + CHUNK]:
        problem = tiny_problem(seed)
        expected, solved = best(problem), tiny_answer(seed)
        if expected is None or solved is None:
            assert expected is None, f"seed {seed}: {expected} is possible"
            assert solved is None, f"seed {seed}: {solved} does not fit"
            continue
        assert _value(problem, solved.answer) == expected, f"seed {seed}"
        certificate = certify(problem, solved.answer)
        assert solved.bound_ns == solved.objective_ns == certificate.step_ns, f"seed {seed}"
        assert all(map(int.__le__, certificate.load_bytes, problem.capacity_bytes))


def test_the_random_problems_cover_every_feature() -> None:
    problems = [tiny_problem(seed) for seed in SEEDS]
    solved = [tiny_answer(seed) for seed in SEEDS]
    assert 0.1 <= solved.count(None) / len(SEEDS) <= 0.3
    pairs = [
        (problem, outcome.answer) for problem, outcome in zip(problems, solved, strict=True) if outcome is not None
    ]
    assert {len(answer.stages) for _, answer in pairs} >= {1, 2, 3}
    for goal in ("time", "balance", "fill"):
        assert sum(problem.goal == goal for problem, _ in pairs) >= 30
    assert sum(problem.spare is not None for problem, _ in pairs) >= 10
    assert sum(problem.ordered for problem, _ in pairs) >= 20
    assert sum(problem.counts is not None for problem, _ in pairs) >= 15
    assert sum(len(problem.kinds) > 1 and len(answer.stages) > 1 for problem, answer in pairs) >= 15
    assert any(() in problem.groups[stage.group].splits for problem, answer in pairs for stage in answer.stages)
    over = [
        problem.groups[stage.group].site >= len(problem.hosts) for problem, answer in pairs for stage in answer.stages
    ]
    assert sum(over) >= 3
    assert sum(len(set(problem.alike)) < len(problem.alike) for problem, _ in pairs) >= 30
    assert sum(len({group.devices for group in problem.groups}) < len(problem.groups) for problem, _ in pairs) >= 20
    tails = [(problem.tail, answer.tail) for problem, answer in pairs if problem.tail and answer.tail]
    assert 0.4 <= len(tails) / len(pairs) <= 0.8
    for name in ("first", "last"):
        shares = [
            pieces is None
            for tail, placed in tails
            for axis, pieces in zip(tail.axes, placed.shares, strict=True)
            if axis.shared == name
        ]
        assert min(shares.count(True), shares.count(False)) >= 5


@pytest.mark.parametrize("start", range(0, 20, 5))
def test_the_answer_does_not_depend_on_workers_and_seed(start: int) -> None:
    for seed in range(start, start + 5):
        expected = tiny_answer(seed)
        for workers, number in ((1, 12345), (2, 7)):
            solved = solve(tiny_problem(seed), Settings(workers=workers, seed=number))
            assert (solved and solved.answer) == (expected and expected.answer), f"seed {seed}"


def test_fits_agrees_with_solve() -> None:
    for seed in range(60):
        assert fits(tiny_problem(seed), ONE) == (tiny_answer(seed) is not None), f"seed {seed}"


def test_nothing_is_faster_than_the_least_step() -> None:
    checked = 0
    for seed in range(12):
        problem = tiny_problem(seed)
        if problem.goal != "time":
            continue
        solved = tiny_answer(seed)
        if solved is None:
            assert takes_longer(problem, 10**6, ONE), f"seed {seed}"
            continue
        assert takes_longer(problem, solved.least_ns - 1, ONE), f"seed {seed}"
        assert not takes_longer(problem, solved.least_ns, ONE), f"seed {seed}"
        checked += 1
    assert checked > 2


def test_with_a_gap_the_answer_is_certified_and_does_not_depend_on_seed_or_workers() -> None:
    """In the last two cases the bound is rounded to a nanosecond."""
    rounded = ((31, 10_000), (58, 100_000))
    for seed, gap_ppm in (*((seed, (500_000, 100_000, 10_000)[seed % 3]) for seed in range(18)), *rounded):
        problem = tiny_problem(seed)
        exact = tiny_answer(seed)
        rough = [solve(problem, Settings(workers=w, seed=s, gap_ppm=gap_ppm)) for w, s in ((1, 0), (2, 7))]
        if exact is None:
            assert rough == [None, None]
            continue
        assert rough[0] is not None
        assert rough[1] is not None
        assert rough[0].answer == rough[1].answer
        step = certify(problem, rough[0].answer).step_ns
        assert 10**6 * (rough[0].objective_ns - rough[0].bound_ns) <= gap_ppm * rough[0].objective_ns
        if problem.goal == "time":
            assert rough[0].bound_ns <= exact.objective_ns <= step <= rough[0].objective_ns


def missing(problem: Problem) -> tuple[int, ...]:
    short = shortage(problem, 10.0)
    assert short.missing is not None
    assert short.least_bytes == sum(short.missing)
    return short.missing


def test_missing_bytes_are_minimal() -> None:
    """Assert that the problem fits with the missing bytes added, and not with one byte less on any device."""
    checked = 0
    for seed in SEEDS:
        problem = tiny_problem(seed)
        # With fixed counts a group may have no split for its layers, which no memory can mend.
        if checked >= 12 or problem.counts is not None or len(problem.devices) > 3 or tiny_answer(seed) is not None:
            continue
        short = missing(problem)
        assert sum(short) > 0
        assert best(_with_more_bytes(problem, short)) is not None
        for device, nbytes in enumerate(short):
            if nbytes:
                less = tuple(n - (d == device) for d, n in enumerate(short))
                assert best(_with_more_bytes(problem, less)) is None
                checked += 1
    assert checked >= 5


def test_no_bytes_are_missing_if_a_placement_fits() -> None:
    seed = next(seed for seed in SEEDS if tiny_answer(seed) is not None)
    problem = tiny_problem(seed)
    assert missing(problem) == (0,) * len(problem.devices)


def test_the_limit_ends_in_a_refusal_with_the_gap() -> None:
    seed = next(seed for seed in SEEDS if len(_stages(seed)) > 1)
    with pytest.raises(NotProvenError, match="deterministic limit of 0") as refused:
        solve(tiny_problem(seed), Settings(limit=0))
    assert refused.value.exit_code == 3


def _slower(problem: Problem, ns: int) -> Problem:
    """Add ``ns`` to the time of every split, so to every layer."""
    splits = {id(listed): listed for group in problem.groups for listed in group.splits}
    slow = {
        known: tuple(dataclasses.replace(split, ns=split.ns + ns) for split in listed)
        for known, listed in splits.items()
    }
    groups = (dataclasses.replace(g, splits=tuple(slow[id(listed)] for listed in g.splits)) for g in problem.groups)
    return dataclasses.replace(problem, groups=tuple(groups))


def test_a_problem_that_fits_but_exceeds_the_longest_step_is_not_reported_as_infeasible() -> None:
    fitting = [tiny_answer(seed) is not None for seed in SEEDS[:20]]
    assert set(fitting) == {True, False}
    for seed, fit in zip(SEEDS, fitting, strict=False):
        problem = tiny_problem(seed)
        most = limits.MOST_NS
        too_slow = _slower(problem, most)
        assert fits(too_slow, ONE) == fit, f"seed {seed}"
        if not fit:
            assert solve(too_slow, ONE) is None, f"seed {seed}"
            continue
        with pytest.raises(NotProvenError, match="the longest that is counted") as refused:
            solve(too_slow, ONE)
        assert refused.value.bound_ns == most
        solved, answer = solve(_slower(problem, most // 8), ONE), tiny_answer(seed)
        assert solved is not None, f"seed {seed}"
        assert answer is not None
        assert solved.objective_ns >= answer.objective_ns + problem.layers * (most // 8)


def _stages(seed: int) -> tuple[object, ...]:
    solved = tiny_answer(seed)
    return solved.answer.stages if solved else ()


def test_a_tiny_gap_takes_few_searches() -> None:
    for seed in SEEDS[:20]:
        solved = solve(tiny_problem(seed), Settings(gap_ppm=1))
        if solved is not None:
            assert len(solved.optima) < 60, f"seed {seed}"
            assert solved.bound_ns == solved.least_ns
