"""The class model bounds every placement, and packings of its counts are placements, against brute force."""

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
    """Devices of which each may now be another than its like."""
    capacity = tuple(map(sum, zip(problem.capacity_bytes, nbytes, strict=True)))
    return dataclasses.replace(problem, capacity_bytes=capacity, alike=tuple(range(len(capacity))))


def test_nothing_is_missing_by_count_where_something_fits() -> None:
    for seed in SEEDS:
        if tiny_answer(seed) is not None:
            assert least_missing(tiny_problem(seed))[0] == 0, f"seed {seed}"
            roomiest(tiny_problem(seed))


def test_counting_says_no_of_some() -> None:
    refused = 0
    for seed in SEEDS:
        try:
            roomiest(tiny_problem(seed))
        except Infeasible:
            refused += 1
            assert tiny_answer(seed) is None, f"seed {seed}"
            assert least_missing(tiny_problem(seed))[0] > 0
    assert refused >= 3


def test_with_what_a_packing_misses_something_fits() -> None:
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
def test_what_is_missing_on_many_equal_devices_is_proven(hosts: int) -> None:
    """405B in bf16 on 32 L4: in a moment, and evenly, since no device is told apart."""
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
    assert sum(short.missing) == short.least_bytes > 90 << 30
    assert max(short.missing) < 1.5 * min(short.missing)


@pytest.mark.parametrize("mib", [24_000, 30_000])
def test_a_bound_is_never_more_than_a_packing_of_gigabytes_misses(mib: int) -> None:
    """Mixtral-8x7B in whole layers on three hosts: of sums of so many bytes the solver must prove nothing wrong."""
    base = load_base(ROOT / "plans/mixtral-8x7b-2gpu/config.json")
    row = [{"id": f"g{n}", "type": "v100-32g", "memory": f"{mib} MiB"} for n in range(3)]
    hosts = [{"name": device["id"], "links": {"class": "pcie"}, "devices": [device]} for device in row]
    devices = inventory_of({"hosts": hosts, "network": {"class": "infiniband"}}, "bfloat16")
    options = dataclasses.replace(options_of(base, None, 8192, "bfloat16"), strategy="balanced")
    problem = Formulation(model=base.model, draft=None, options=options, inventory=devices).problem
    spread = packed(problem, Restriction(groups=(0, 1, 2), choices=(((0, 0),), ((0, 0),))))
    assert spread is not None
    short = shortage(problem, 1.0)
    assert short.missing is not None
    assert 0 < short.least_bytes <= sum(short.missing) <= sum(spread)
