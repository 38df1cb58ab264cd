"""The class model is a lower bound of missing bytes and its packings are placements, compared with brute force."""

import dataclasses

import pytest

from planner.families import load_base
from planner.problem.formulate import Formulation
from planner.solver.feasible.class_model import least_missing, roomiest
from planner.solver.feasible.greedy import packed
from planner.solver.feasible.shortage import shortage
from planner.solver.minimise import Infeasible
from planner.solver.problem import Problem
from planner.solver.restriction import Restriction
from tests.planner.brute_force import best
from tests.planner.instances import ROOT, inventory_of, options_of
from tests.planner.tiny_problems import tiny_answer, tiny_problem

SEEDS = range(80)


def with_more(problem: Problem, nbytes: tuple[int, ...]) -> Problem:
    """Add bytes to the devices, after which no two count as alike."""
    capacity = tuple(map(sum, zip(problem.capacity_bytes, nbytes, strict=True)))
    return dataclasses.replace(problem, capacity_bytes=capacity, alike=tuple(range(len(capacity))))


def test_the_class_model_misses_no_bytes_if_a_placement_fits() -> None:
    for seed in SEEDS:
        if tiny_answer(seed) is not None:
            assert least_missing(tiny_problem(seed))[0] == 0, f"seed {seed}"
            roomiest(tiny_problem(seed))


def test_problems_without_a_solution_of_the_class_model_are_infeasible() -> None:
    refused = 0
    for seed in SEEDS:
        try:
            roomiest(tiny_problem(seed))
        except Infeasible:
            refused += 1
            assert tiny_answer(seed) is None, f"seed {seed}"
            assert least_missing(tiny_problem(seed))[0] > 0
    assert refused >= 3


def test_the_problem_fits_with_the_bytes_that_a_packing_misses() -> None:
    packings = 0
    for seed in SEEDS:
        problem = tiny_problem(seed)
        bound, structure = least_missing(problem)
        missing = packed(problem, structure) if structure else None
        if missing is not None:
            packings += 1
            assert sum(missing) >= bound
            assert best(with_more(problem, missing)) is not None, f"seed {seed}"
    assert packings >= 20


@pytest.mark.parametrize("hosts", [1, 4])
def test_missing_bytes_of_many_equal_devices_are_proven(hosts: int) -> None:
    """Llama 405B in bf16 on 32 L4: proven quickly to 2 MiB, and missing bytes are spread evenly over equal devices."""
    base = load_base(ROOT / "plans/llama405b-16gpu/config.json")
    names = [[f"g{host}-{n}" for n in range(32 // hosts)] for host in range(hosts)]
    data = {
        "hosts": [
            {"name": f"h{h}", "links": {"class": "pcie"}, "devices": [{"id": name, "type": "l4"} for name in row]}
            for h, row in enumerate(names)
        ],
        "network": {"class": "ethernet"},
    }
    devices = inventory_of(data, "bfloat16")
    options = options_of(base, None, 8192, "bfloat16")
    problem = Formulation(model=base.model, draft=None, options=options, inventory=devices).problem
    short = shortage(problem, 0.0)
    assert short.missing is not None
    assert 90 << 30 < short.least_bytes <= sum(short.missing) <= short.least_bytes + (2 << 20)
    assert max(short.missing) < 1.5 * min(short.missing)


@pytest.mark.parametrize("mib", [24_000, 30_000])
def test_the_bound_is_at_most_what_a_packing_of_gigabytes_misses(mib: int) -> None:
    """Mixtral-8x7B in whole layers on three hosts: sums of so many bytes must not make the solver's bound wrong."""
    base = load_base(ROOT / "plans/mixtral-8x7b-2gpu/config.json")
    row = [{"id": f"g{n}", "type": "a100-40g", "memory": f"{mib} MiB"} for n in range(3)]
    hosts = [{"name": device["id"], "links": {"class": "pcie"}, "devices": [device]} for device in row]
    devices = inventory_of({"hosts": hosts, "network": {"class": "infiniband"}}, "float16")
    options = dataclasses.replace(options_of(base, None, 8192, "float16"), strategy="balanced")
    problem = Formulation(model=base.model, draft=None, options=options, inventory=devices).problem
    spread = packed(problem, Restriction(groups=(0, 1, 2), choices=(((0, 0),), ((0, 0),))))
    assert spread is not None
    short = shortage(problem, 1.0)
    assert short.missing is not None
    assert 0 < short.least_bytes <= sum(short.missing) <= sum(spread)
