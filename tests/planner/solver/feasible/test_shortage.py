"""Missing bytes of an infeasible problem, per device."""

import dataclasses
import re

import pytest

from planner.errors import InfeasibleError
from planner.infeasible import infeasible
from planner.problem.formulate import Formulation
from planner.solver.minimise import Settings
from planner.solver.problem import Problem
from planner.solver.solve import solve
from tests.planner.instances import cpu, demo, formulation, host, inventory_of, options_of, plan_of
from tests.planner.tiny_problems import tiny_problem

ONE = Settings(workers=1)
SMALL = {"hosts": [host("left", cpu("c0", 7), cpu("c1", 5)), host("right", cpu("c2", 6))], "network": {"class": "shm"}}


def larger(problem: Problem, nbytes: dict[str, int]) -> Problem:
    capacity = (c + nbytes.get(name, 0) for name, c in zip(problem.devices, problem.capacity_bytes, strict=True))
    return dataclasses.replace(problem, capacity_bytes=tuple(capacity))


@pytest.mark.parametrize("head", ["eagle3", None])
def test_the_missing_bytes_are_exact(head) -> None:
    problem = formulation(SMALL, head).problem
    error = infeasible(problem, ONE)
    short = error.short_bytes
    assert short
    assert all(nbytes > 0 for nbytes in short.values())
    assert solve(problem, ONE) is None
    assert solve(larger(problem, short), ONE) is not None
    for name in short:
        assert solve(larger(problem, short | {name: short[name] - 1}), ONE) is None


def test_the_message_names_devices_and_bytes() -> None:
    error = infeasible(formulation(SMALL, "eagle3").problem, ONE)
    assert error.exit_code == 3
    assert f"{sum(error.short_bytes.values())} bytes" in str(error)
    for name, nbytes in error.short_bytes.items():
        assert f"  {name}: " in str(error)
        assert f"({nbytes} bytes)" in str(error)


def test_a_shortage_that_takes_long_to_prove_has_two_bounds() -> None:
    seen = 0
    for seed in range(60):
        problem = tiny_problem(seed)
        error = infeasible(problem, Settings(limit=0.0))
        if problem.counts is not None or not sum(error.short_bytes.values()) > error.least_bytes > 0:
            continue
        least = sum(infeasible(problem, Settings(limit=10.0)).short_bytes.values())
        assert sum(error.short_bytes.values()) >= least >= error.least_bytes
        apart = dataclasses.replace(problem, alike=tuple(range(len(problem.devices))))
        assert solve(larger(apart, error.short_bytes), ONE) is not None
        assert re.match(
            r"no placement fits: at least .* bytes\); at most .* bytes\) under the best packing that", str(error)
        )
        seen += 1
    assert seen


def test_no_shortage_per_device_if_no_memory_would_help() -> None:
    problem = formulation(SMALL, "eagle3").problem
    halves = (problem.kinds[0], dataclasses.replace(problem.kinds[0], units=1))
    lacking = tuple(dataclasses.replace(group, splits=(*group.splits, ())) for group in problem.groups)
    sequence = (*problem.sequence, (1, 1))
    error = infeasible(dataclasses.replace(problem, kinds=halves, groups=lacking, sequence=sequence), ONE)
    assert error.short_bytes == {}
    assert re.fullmatch(r"no placement fits: at least .* MiB short in all \([0-9]+ bytes\)", str(error))


def test_the_shortage_does_not_depend_on_workers_and_seed() -> None:
    problem = formulation(SMALL, "eagle3").problem
    shortages = [infeasible(problem, Settings(workers=w, seed=s)).short_bytes for w, s in ((1, 0), (2, 5), (1, 77))]
    assert shortages[0] == shortages[1] == shortages[2]


def test_an_inventory_with_the_missing_bytes_added_fits() -> None:
    base, draft = demo("eagle3")
    options = options_of(base, draft, 256, "float32")
    devices = inventory_of(SMALL)
    with pytest.raises(InfeasibleError) as refused:
        plan_of(base, draft, devices, options)
    more = tuple(
        dataclasses.replace(d, memory_bytes=d.memory_bytes + refused.value.short_bytes.get(d.id, 0))
        for d in devices.devices
    )
    larger_devices = dataclasses.replace(devices, devices=more)
    fits = Formulation(
        model=base.model, draft=draft.draft if draft else None, options=options, inventory=larger_devices
    )
    assert solve(fits.problem, ONE) is not None
