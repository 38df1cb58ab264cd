"""Devices and hosts that only names tell apart: what is left out of a search for it is never the answer."""

import dataclasses

import pytest

from planner.solver.minimise import Settings
from planner.solver.problem import Option, Problem, Receive, Split
from planner.solver.solve import solve
from planner.solver.symmetry import alike_alone, moved, twins
from tests.planner.instances import cpu, formulation, host
from tests.planner.tiny_problems import tiny_problem

ONE = Settings(workers=1)


def strategy(name: str, *mib: int) -> Problem:
    given = formulation({"hosts": [host("box", *(cpu(f"c{i}", n) for i, n in enumerate(mib)))]}, "eagle3")
    options = dataclasses.replace(given.options, strategy=name)
    return dataclasses.replace(given, options=options).problem


def test_twins_are_hosts_that_differ_by_name_alone() -> None:
    found = [(problem, pairs) for seed in range(300) if (pairs := twins(problem := tiny_problem(seed)))]
    for problem, pairs in found:
        for one, other in pairs:
            here, there = (problem.hosts[host] for host in (one, other))
            assert [problem.capacity_bytes[d] for d in here] == [problem.capacity_bytes[d] for d in there]


def test_equal_hosts_may_change_places_whatever_is_over_several(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = [host(f"box{h}", cpu(f"c{h}", 14)) for h in range(3)]
    network = {"class": "ethernet", "bandwidth": "25 Gbit/s", "latency": "20 us"}
    problem = formulation({"hosts": hosts, "network": network}, "eagle3").problem
    assert any(group.site >= len(problem.hosts) for group in problem.groups)
    assert twins(problem) == ((0, 1), (1, 2))
    found = solve(problem, ONE)
    monkeypatch.setattr("planner.solver.solve.twins", lambda _: ())
    expected = solve(problem, ONE)
    assert found is not None
    assert expected is not None
    assert found.objective_ns == expected.objective_ns
    layers = [sum(s.num_layers for s in found.answer.stages if problem.groups[s.group].site == h) for h in range(3)]
    assert layers == sorted(layers, reverse=True)


def test_what_an_exchange_of_hosts_moves() -> None:
    split = Split(shares=(1, 1, 1), ns=1, bytes=(4, 5, 5))
    nothing = Receive(same_ns=0, inside_ns=0, near_ns=0, far_ns=0)
    option = Option(devices=(0, 1, 2), sites=(0, 1, 2), splits=(split,), receive=nothing)
    assert not moved(option, [0, 2, 1, 3])
    assert moved(option, [1, 0, 2, 3])
    assert moved(option, [0, 1, 3, 2])
    apart = dataclasses.replace(option, splits=(dataclasses.replace(split, bytes=(4, 5, 6)),))
    assert moved(apart, [0, 2, 1, 3])


def test_equal_devices_may_change_places_where_layers_are_whole() -> None:
    assert alike_alone(strategy("balanced", 9, 8, 9, 8, 9)) == ((0, 2), (1, 3), (2, 4))
    assert alike_alone(strategy("latency", 9, 8, 9, 8, 9)) == ()
    assert alike_alone(strategy("sequential", 9, 8, 9, 8, 9)) == ()


def test_the_device_that_is_spared_is_like_no_other() -> None:
    problem = dataclasses.replace(strategy("balanced_low_0", 9, 9, 9), spare=1)
    assert alike_alone(problem) == ((0, 2),)


@pytest.mark.parametrize("mib", [(13, 13, 13), (9, 14, 9, 14), (9, 9, 9, 9, 9)])
@pytest.mark.parametrize("name", ["balanced", "balanced_low_0"])
def test_the_answer_is_the_same_without_it(name: str, mib: tuple[int, ...]) -> None:
    problem = strategy(name, *mib)
    assert alike_alone(problem)
    apart = dataclasses.replace(problem, alike=tuple(range(len(mib))))
    assert alike_alone(apart) == ()
    found, expected = solve(problem, ONE), solve(apart, ONE)
    assert (found and found.answer) == (expected and expected.answer)
    assert found is not None
