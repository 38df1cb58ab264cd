"""Of the answers that are nearly as fast as any, the one with the fewest devices, then the fewest runs of layers."""

import dataclasses
from itertools import combinations_with_replacement, islice

import pytest

from planner.solver.certify import certify, devices_in_use
from planner.solver.minimise import Settings
from planner.solver.problem import Answer, Problem, StageAnswer
from planner.solver.solve import solve
from tests.planner.brute_force import divisions
from tests.planner.every_answer import every_answer, value
from tests.planner.tiny_problems import tiny_problem

FEW = 3000
SEEDS = range(160)


def runs(stage: StageAnswer) -> int:
    """Return the different runs of a stage, as they are dealt out."""
    assert stage.runs is not None
    return sum(map(len, stage.runs))


def fewest_runs(problem: Problem, answer: Answer) -> int:
    """Return the fewest different runs into which the layers and units of all stages can be dealt out evenly."""
    return sum(
        _fewest(problem.kinds[k].units, counts, units)
        for stage in answer.stages
        for k, (counts, units) in enumerate(zip(stage.layers, stage.units, strict=True))
        if sum(counts)
    )


def _fewest(layer_units: int, counts: tuple[int, ...], units: tuple[int, ...]) -> int:
    splits = [split for split, count in enumerate(counts) for _ in range(count)]
    best = 1 << 30
    of_layer = list(divisions(layer_units, len(units)))
    for dealt in combinations_with_replacement(of_layer, len(splits)):
        sums = tuple(map(sum, zip(*dealt, strict=True)))
        is_even = all(max(column) - min(column) <= 1 for column in zip(*dealt, strict=True))
        if sums == units and is_even:
            best = min(best, _fewest_pairs(splits, list(dealt)))
    return best


def _fewest_pairs(splits: list[int], dealt: list[tuple[int, ...]]) -> int:
    """Return the fewest different pairs of a split and a division, over all ways to pair them off."""
    if not splits:
        return 0

    def pair_off(at: int, left: list[tuple[int, ...]], pairs: frozenset[tuple[int, tuple[int, ...]]]) -> int:
        if at == len(splits):
            return len(pairs)
        return min(
            pair_off(at + 1, [*left[:n], *left[n + 1 :]], pairs | {(splits[at], left[n])})
            for n in range(len(left))
            if left[n] not in left[:n]
        )

    return pair_off(0, dealt, frozenset())


def in_use(problem: Problem, answer: Answer) -> int:
    return len(devices_in_use(problem, answer))


@pytest.mark.parametrize("start", range(0, len(SEEDS), 20))
def test_the_simplest_answer_within_the_tolerance_is_found(start: int) -> None:
    compared = 0
    for seed in SEEDS[start : start + 20]:
        ppm = (50_000, 200_000, 500_000)[seed % 3]
        problem = dataclasses.replace(tiny_problem(seed), simplify_ppm=ppm)
        answers = list(islice(every_answer(problem), FEW))
        if len(answers) == FEW:
            continue
        priced = [(priced, answer) for answer in answers if (priced := value(problem, answer)) is not None]
        solved = solve(problem, Settings())
        if not priced:
            assert solved is None, f"seed {seed}"
            continue
        assert solved is not None, f"seed {seed}"
        goal = min(key[:-2] for key, _ in priced)
        fast = [(key[-2], answer) for key, answer in priced if key[:-2] == goal]
        least_ns = min(ns for ns, _ in fast)
        near = [(ns, answer) for ns, answer in fast if ns <= least_ns + least_ns * ppm // 10**6]
        fewest = min(in_use(problem, answer) for _, answer in near)
        few = [(ns, answer) for ns, answer in near if in_use(problem, answer) == fewest]
        expected = min((fewest_runs(problem, answer), ns) for ns, answer in few)
        assert solved.least_ns == solved.bound_ns == least_ns, f"seed {seed}"
        assert in_use(problem, solved.answer) == fewest, f"seed {seed}"
        found = (sum(map(runs, solved.answer.stages)), certify(problem, solved.answer).step_ns)
        assert found == expected, f"seed {seed}"
        compared += 1
    assert compared


def test_the_simplest_answer_does_not_depend_on_workers_and_seed() -> None:
    for seed in range(12):
        problem = dataclasses.replace(tiny_problem(seed), simplify_ppm=100_000)
        answers = [solve(problem, Settings(workers=w, seed=s)) for w, s in ((1, 0), (1, 12345), (2, 7))]
        assert len({solved and solved.answer for solved in answers}) == 1, f"seed {seed}"


def test_most_devices_hold() -> None:
    refused = 0
    for seed in range(60):
        problem = tiny_problem(seed)
        answers = list(islice(every_answer(problem), FEW))
        if len(answers) == FEW:
            continue
        for most in (1, 2):
            few = dataclasses.replace(problem, most_devices=most)
            values = [
                priced
                for answer in answers
                if in_use(problem, answer) <= most and (priced := value(problem, answer)) is not None
            ]
            solved = solve(few, Settings())
            if not values:
                assert solved is None, f"seed {seed}"
                refused += 1
                continue
            assert solved is not None, f"seed {seed}"
            assert in_use(problem, solved.answer) <= most
            assert value(problem, solved.answer) == min(values), f"seed {seed}"
    assert refused
