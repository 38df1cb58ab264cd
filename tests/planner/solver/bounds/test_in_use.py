"""The bound by the number of hosts against enumerated answers, and how many hosts it leaves."""

import math
from itertools import count, islice

from planner.solver.bounds.host_count import HostCount, WiderGroups, host_count
from planner.solver.certify import devices_in_use
from tests.planner.every_answer import every_answer, step_ns
from tests.planner.tiny_problems import tiny_problem

SEVERAL = list(islice((seed for seed in count() if len(tiny_problem(seed).hosts) > 1), 40))


def test_no_answer_takes_less_than_the_bound_for_its_hosts() -> None:
    for seed in SEVERAL:
        problem = tiny_problem(seed)
        bound = host_count(problem, [])
        for answer in islice(every_answer(problem), 300):
            hosts = {problem.host_of[device] for device in devices_in_use(problem, answer)}
            assert bound.least_ns(len(hosts)) <= step_ns(problem, answer), f"seed {seed}: {answer}"


def test_each_host_costs_its_message_and_what_a_stage_there_takes_at_least() -> None:
    problem = tiny_problem(SEVERAL[0])
    fixed, slope = host_count(problem, []).lines[0]
    hops = [g.network_hop_ns / len({problem.host_of[d] for d in g.devices}) for g in problem.groups]
    assert slope >= problem.network_message_ns + min(hops)
    assert math.isfinite(fixed)


def test_a_cheaper_group_over_more_hosts_lowers_the_bound() -> None:
    problem = tiny_problem(SEVERAL[0])
    free = WiderGroups(
        most_hosts=9,
        layer_ns=(0.0,) * len(problem.kinds),
        network_hop_ns=0,
        first_ns=0,
        blocks_ns=(0.0,) * len(list(problem.blocks)),
    )
    known, lower = host_count(problem, []), host_count(problem, [free])
    assert all(lower.least_ns(hosts) <= known.least_ns(hosts) for hosts in range(1, 10))
    assert math.isclose(lower.least_ns(9), 8 * problem.network_message_ns, abs_tol=1e-3)


def test_the_most_hosts_are_those_whose_bound_is_within_the_limit() -> None:
    bound = HostCount(lines=((100.0, 10.0), (130.0, 2.0)))
    assert [bound.most_hosts(limit, 8) for limit in (120, 132.5, 141, 1000)] == [0, 1, 4, 8]
