"""Lower bounds of the step against enumerated and proven answers: no answer is below the bound of a part it uses."""

import dataclasses
import math
from functools import cache
from itertools import count, islice

import pytest

from planner.solver import limits
from planner.solver.bounds.step import Bounds, lower_bounds
from planner.solver.minimise import Settings
from planner.solver.problem import Answer, Problem, Split
from planner.solver.solve import solve
from tests.planner.brute_force import best
from tests.planner.every_answer import every_answer, value
from tests.planner.tiny_problems import tiny_answer, tiny_problem


def uses(answer: Answer) -> tuple[set[int], list[tuple[int, int]]]:
    """Return the groups of an answer, and the (option, split) of each block."""
    blocks = [placed for placed in (answer.first, answer.last, answer.tail) if placed is not None]
    return {stage.group for stage in answer.stages}, [(placed.option, placed.split) for placed in blocks]


def splits_of(answer: Answer) -> set[tuple[int, int, int]]:
    """Return the splits (group, kind, split) by which an answer divides layers."""
    return {
        (stage.group, k, c)
        for stage in answer.stages
        for k, counts in enumerate(stage.layers)
        for c, layers in enumerate(counts)
        if layers
    }


@cache
def bounds_of(seed: int) -> Bounds | None:
    """Return the bounds with memory prices, which exclude at least as much as those without."""
    bounds = lower_bounds(tiny_problem(seed))
    return bounds and bounds.tightened()


@cache
def seeds() -> list[int]:
    """Return the first 100 problems that have bounds."""
    return list(islice((seed for seed in count() if bounds_of(seed) is not None), 100))


def is_kept(seed: int, answer: Answer, step_ns: int) -> bool:
    bounds = bounds_of(seed)
    assert bounds is not None
    kept = bounds.within(step_ns)
    groups, choices = uses(answer)
    placed = all(choice in known for choice, known in zip(choices, kept.choices, strict=True))
    divided = kept.left_out.isdisjoint(splits_of(answer))
    return groups <= set(kept.groups) and placed and divided and bounds.least <= step_ns


@pytest.mark.parametrize("start", range(0, 100, 25))
def test_the_optimum_is_not_excluded_at_its_own_time(start: int) -> None:
    for seed in seeds()[start : start + 25]:
        solved = tiny_answer(seed)
        assert solved is None or is_kept(seed, solved.answer, solved.objective_ns), f"seed {seed}"


def test_no_feasible_answer_is_excluded_at_its_own_time() -> None:
    seen = 0
    for seed in seeds()[:60]:
        problem = tiny_problem(seed)
        for number, answer in enumerate(every_answer(problem)):
            if number == 200:
                break
            price = value(problem, answer)
            if price is not None:
                assert is_kept(seed, answer, price[-2]), f"seed {seed}: {answer}"
                seen += 1
    assert seen > 500


def test_most_problems_have_groups_excluded_with_one_kind_of_layers_and_with_several() -> None:
    less = {True: 0, False: 0}
    for seed in seeds():
        problem, bounds, solved = tiny_problem(seed), bounds_of(seed), tiny_answer(seed)
        if bounds is not None and solved is not None:
            is_less = len(bounds.within(solved.objective_ns).groups) < len(problem.groups)
            less[len(problem.kinds) > 1] += is_less
    assert less[False] > 20
    assert less[True] > 15


def with_slow_splits(problem: Problem) -> Problem:
    """Return the problem with ample memory and, for each split, one more that takes longer."""

    def added(splits: tuple[Split, ...]) -> tuple[Split, ...]:
        return splits + tuple(dataclasses.replace(split, ns=split.ns + 9) for split in splits)

    return dataclasses.replace(
        problem,
        capacity_bytes=tuple(50 * nbytes for nbytes in problem.capacity_bytes),
        groups=tuple(dataclasses.replace(group, splits=tuple(map(added, group.splits))) for group in problem.groups),
    )


def test_no_split_of_an_answer_is_left_out_at_its_own_time() -> None:
    seen = left_out = 0
    for seed in range(90):
        problem = with_slow_splits(tiny_problem(seed))
        bounds = lower_bounds(problem)
        if bounds is None:
            continue
        assert not bounds.within(math.inf).left_out
        left_out += len(bounds.within(bounds.least + 2).left_out) > 0
        for answer in islice(every_answer(problem), 0, 2000, 40):
            price = value(problem, answer)
            if price is not None:
                left = bounds.within(price[-2]).left_out
                assert left.isdisjoint(splits_of(answer)), f"seed {seed}: {answer}"
                seen += 1
    assert seen > 500
    assert left_out > 20


def test_memory_prices_tighten_the_bounds_once() -> None:
    priced = 0
    for seed in seeds():
        solved, free = tiny_answer(seed), lower_bounds(tiny_problem(seed))
        assert free is not None
        tight = free.tightened()
        assert tight.is_priced
        assert tight.tightened() is tight
        assert tight.least >= free.least
        if solved is not None:
            assert set(tight.within(solved.objective_ns).groups) <= set(free.within(solved.objective_ns).groups)
            priced += tight.least > free.least
    assert priced >= 5


def test_sets_of_groups_over_hosts_tighten_the_bounds_and_exclude_no_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tighter = 0
    for seed in range(300):
        problem = tiny_problem(seed)
        is_near = all(group.site < len(problem.hosts) for group in problem.groups)
        if is_near or len(problem.kinds) > 1 or bounds_of(seed) is None:
            continue
        with monkeypatch.context() as patch:
            patch.setattr(limits, "MOST_WIDE_SETS", 0)
            single = lower_bounds(problem)
        sets, solved = lower_bounds(problem), tiny_answer(seed)
        assert single is not None
        assert sets is not None
        tighter += sets.least > single.least
        if solved is not None:
            used = uses(solved.answer)[0]
            step_ns = solved.objective_ns
            assert single.least <= sets.least <= step_ns, f"seed {seed}"
            assert used <= set(sets.within(step_ns).groups) <= set(single.within(step_ns).groups), f"seed {seed}"
            seen += 1
    assert seen >= 20
    assert tighter >= 3


def on_single_devices(seed: int) -> Problem | None:
    """Restrict a problem to single devices; return None if that is impossible or the bounds do not apply."""
    problem = tiny_problem(seed)
    blocks = [
        dataclasses.replace(block, options=tuple(o for o in block.options if len(o.devices) == 1))
        for block in problem.blocks
    ]
    groups = tuple(group for group in problem.groups if len(group.devices) == 1)
    if not all(block.options for block in blocks) or len(problem.kinds) > 1 or problem.counts is not None:
        return None
    tail = blocks[2] if len(blocks) > 2 else None
    # who sleeps is in no bound: all are told alike
    told = (None,) * len(problem.hosts)
    return dataclasses.replace(
        problem, goal="time", spare=None, groups=groups, first=blocks[0], last=blocks[1], tail=tail, awake_ns=told
    )


def test_bounds_are_nearly_exact_if_nothing_is_divided() -> None:
    seen = exact = 0
    for seed in range(150):
        problem = on_single_devices(seed)
        if problem is None or (expected := best(problem)) is None:
            continue
        bounds = lower_bounds(problem)
        assert bounds is not None
        assert bounds.whole_layers is not None
        assert bounds.least <= expected[-2], f"seed {seed}"
        seen += 1
        exact += math.ceil(bounds.least) == expected[-2]
        answer = solve(problem, Settings())
        assert answer is not None
        assert answer.objective_ns == expected[-2]
    assert seen >= 20
    assert exact >= 0.3 * seen
