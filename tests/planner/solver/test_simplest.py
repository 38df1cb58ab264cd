"""The simplest of the answers that are nearly as fast as any: fewest devices, then fewest runs of layers."""

import dataclasses
import json
import tempfile
from itertools import combinations_with_replacement, islice
from pathlib import Path
from typing import Any

import pytest

from planner.families import load_base
from planner.formulations import Formulations
from planner.request import Wanted, resolve
from planner.solver import limits
from planner.solver.certify import certify, devices_in_use
from planner.solver.minimise import Settings
from planner.solver.problem import Answer, Problem, StageAnswer
from planner.solver.simplest import enough
from planner.solver.solve import Simplicity, Solved, solve
from tests.planner.brute_force import divisions
from tests.planner.every_answer import every_answer, value
from tests.planner.instances import ROOT, formulation, gpu, host, inventory_of, saved
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
        assert solved.simplicity == Simplicity(devices=fewest, runs=expected[0], step_ns=expected[1]), f"seed {seed}"
        compared += 1
    assert compared


def test_the_simplest_answer_does_not_depend_on_workers_and_seed() -> None:
    for seed in range(12):
        problem = dataclasses.replace(tiny_problem(seed), simplify_ppm=100_000)
        answers = [solve(problem, Settings(workers=w, seed=s)) for w, s in ((1, 0), (2, 7))]
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


# ---- machines ----


def formulated(config: dict[str, Any], link: str, types: tuple[str, ...], wanted: Wanted) -> Problem:
    """Return the problem of a bare config on one host."""
    with tempfile.TemporaryDirectory() as directory:
        base = load_base(saved(Path(directory) / "base", config))
    devices = [{"id": f"gpu{number}", "type": name} for number, name in enumerate(types)]
    inventory = inventory_of({"hosts": [host("box", *devices, links={"class": link})]}, "bfloat16")
    return Formulations().of(base, None, inventory, resolve(wanted, "bfloat16", base, None)).problem


BASE = json.loads((ROOT / "plans/llama70b-4gpu/config.json").read_text())
GB_80 = BASE | {"num_hidden_layers": 46, "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2}
GB_50 = BASE | {"num_hidden_layers": 30, "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("types", [("a6000", "a5000", "a5000"), ("a5000", "a6000", "a5000")])
def test_a_large_and_two_small_cards_run_all_layers_alike(types: tuple[str, ...]) -> None:
    wanted = Wanted(context=4096)
    exact = solve(formulated(GB_80, "pcie", types, dataclasses.replace(wanted, simplify_ppm=0)), Settings())
    simple = solve(formulated(GB_80, "pcie", types, wanted), Settings())
    assert exact is not None
    assert simple is not None
    (stage,) = simple.answer.stages
    assert runs(stage) == 1
    assert simple.least_ns == simple.bound_ns == exact.least_ns
    assert exact.least_ns <= simple.objective_ns <= exact.least_ns * 1.005


def test_fewer_devices_may_be_asked_for() -> None:
    """The answer on so many of a machine is as fast as on a machine that has no others, but for messages."""
    wanted = Wanted(context=2048, simplify_ppm=0)
    few = solve(formulated(GB_50, "pcie", ("a100-80g", "rtx-4090"), wanted), Settings())
    problem = formulated(GB_50, "pcie", ("a100-80g", *["rtx-4090"] * 3), dataclasses.replace(wanted, max_devices=2))
    capped = solve(problem, Settings())
    assert few is not None
    assert capped is not None
    assert in_use(problem, capped.answer) == 2
    assert abs(capped.least_ns - few.least_ns) < few.least_ns // 500


def test_where_no_search_for_a_simpler_answer_ends_the_fastest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEVICES_LIMIT", "FEWEST_RUNS_LIMIT", "RUNS_LIMIT"):
        monkeypatch.setattr(limits, name, 0.0)
    solved = 0
    for seed in range(20):
        problem = dataclasses.replace(tiny_problem(seed), simplify_ppm=100_000)
        first, other = (solve(problem, Settings(workers=workers, seed=n)) for workers, n in ((1, 0), (2, 3)))
        assert (other and other.answer) == (first and first.answer), f"seed {seed}"
        assert (other and other.simplicity) == (first and first.simplicity), f"seed {seed}"
        if first is not None:
            solved += 1
            certify(problem, first.answer)
            assert first.least_ns <= first.objective_ns <= first.least_ns * 1.1
            _check_bounds(monkeypatch, problem, first)
    assert solved > 10


def _check_bounds(monkeypatch: pytest.MonkeyPatch, problem: Problem, hasty: Solved) -> None:
    """Compare the bounds of an answer whose searches did not end with the answer of searches that do."""
    with monkeypatch.context() as patched:
        for name in ("DEVICES_LIMIT", "FEWEST_RUNS_LIMIT", "RUNS_LIMIT"):
            patched.setattr(limits, name, 10.0)
        whole = solve(problem, Settings())
    assert whole is not None
    assert hasty.simplicity is not None
    assert hasty.simplicity.devices <= in_use(problem, whole.answer) <= in_use(problem, hasty.answer)
    assert hasty.simplicity.step_ns <= hasty.objective_ns
    if in_use(problem, whole.answer) == in_use(problem, hasty.answer):
        assert hasty.simplicity.runs is not None
        assert hasty.simplicity.runs <= sum(map(runs, whole.answer.stages))


def test_nothing_is_said_of_simplicity_where_it_was_not_asked_for_or_a_gap_was_accepted() -> None:
    problem = tiny_problem(1)
    exact = solve(dataclasses.replace(problem, simplify_ppm=0), Settings())
    near = solve(dataclasses.replace(problem, simplify_ppm=100_000), Settings(gap_ppm=50_000))
    assert exact is not None
    assert near is not None
    assert exact.simplicity is near.simplicity is None


def test_that_fewer_devices_are_too_slow_is_counted_and_not_searched() -> None:
    """One card has room for all, and stages on all sizes of groups are fast enough beside one on eight cards."""
    rates = {"bandwidth": "1 GB/s", "flops": "1 TFLOP/s", "overhead": "1 us"}
    hosts = [
        host(f"h{h}", *(gpu(f"h{h}g{d}", 400_000, **rates) for d in range(4)), links={"class": "nvlink"})
        for h in range(2)
    ]
    machine = {"hosts": hosts, "network": {"class": "infiniband", "latency": "1 us"}}
    problem = dataclasses.replace(formulation(machine, None).problem, simplify_ppm=100_000)
    solved = solve(problem, Settings())
    assert solved is not None
    assert solved.simplicity is not None
    assert solved.simplicity.devices == in_use(problem, solved.answer) == 8
    assert "devices in use" not in {optimum.what for optimum in solved.optima}


@pytest.mark.parametrize(("needed", "count"), [(0, 1), (5, 1), (6, 2), (9, 2), (10, 3), (99, 3)])
def test_so_many_of_the_largest_rooms_are_enough(needed: int, count: int) -> None:
    assert enough((1, 5, 4), needed) == count
