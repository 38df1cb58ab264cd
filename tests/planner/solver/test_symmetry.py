"""Devices and hosts that differ only by name: symmetry breaking never excludes the optimum."""

import dataclasses

import pytest

from planner.solver.minimise import Settings
from planner.solver.problem import Option, Receive, Split
from planner.solver.solve import solve
from planner.solver.symmetry import equal_hosts, moved
from tests.planner.instances import cpu, formulation, host
from tests.planner.tiny_problems import tiny_problem

ONE = Settings(workers=1)
HOSTS = [host(f"box{h}", cpu(f"c{h}", 14)) for h in range(3)]
NETWORK = {"class": "ethernet", "bandwidth": "25 Gbit/s", "latency": "20 us"}


def test_equal_hosts_differ_by_name_alone() -> None:
    with_pairs = [(problem, pairs) for seed in range(300) if (pairs := equal_hosts(problem := tiny_problem(seed)))]
    for problem, pairs in with_pairs:
        for one, other in pairs:
            first, second = (problem.hosts[host] for host in (one, other))
            assert [problem.capacity_bytes[d] for d in first] == [problem.capacity_bytes[d] for d in second]


def test_hosts_that_need_other_bytes_beside_what_they_read_are_not_equal() -> None:
    problem = formulation({"hosts": HOSTS, "network": NETWORK}, "eagle3").problem
    (axis,) = problem.last.axes
    more = tuple(n + (d in problem.hosts[2]) for d, n in enumerate(axis.read_bytes))
    last = dataclasses.replace(problem.last, axes=(dataclasses.replace(axis, read_bytes=more),))
    assert equal_hosts(problem) == ((0, 1), (1, 2))
    assert equal_hosts(dataclasses.replace(problem, last=last)) == ((0, 1),)


def test_equal_hosts_are_exchangeable_although_groups_span_them(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = formulation({"hosts": HOSTS, "network": NETWORK}, "eagle3").problem
    assert any(group.site >= len(problem.hosts) for group in problem.groups)
    assert equal_hosts(problem) == ((0, 1), (1, 2))
    solved = solve(problem, ONE)
    monkeypatch.setattr("planner.solver.search.equal_hosts", lambda _: ())
    expected = solve(problem, ONE)
    assert solved is not None
    assert expected is not None
    assert solved.objective_ns == expected.objective_ns
    layers = [sum(s.num_layers for s in solved.answer.stages if problem.groups[s.group].site == h) for h in range(3)]
    assert layers == sorted(layers, reverse=True)


def test_an_exchange_of_hosts_moves_an_option_unless_its_members_are_equal() -> None:
    split = Split(shares=(1, 1, 1), ns=1, bytes=(4, 5, 5))
    nothing = Receive(same_ns=0, inside_ns=0, near_ns=0, far_ns=0)
    option = Option(devices=(0, 1, 2), sites=(0, 1, 2), splits=(split,), receive=nothing, quantum_ns=1)
    assert not moved(option, [0, 2, 1, 3])
    assert moved(option, [1, 0, 2, 3])
    assert moved(option, [0, 1, 3, 2])
    apart = dataclasses.replace(option, splits=(dataclasses.replace(split, bytes=(4, 5, 6)),))
    assert moved(apart, [0, 2, 1, 3])
