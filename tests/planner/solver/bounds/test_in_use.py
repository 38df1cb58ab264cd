"""The bound by hosts and devices in use against enumerated answers, and how many hosts and devices it leaves."""

import math
from dataclasses import replace
from itertools import count, islice

from planner.solver.bounds.in_use import InUse, Part, WiderGroups, in_use
from planner.solver.certify import devices_in_use
from planner.solver.problem import Block, Problem, Receive
from tests.planner.every_answer import every_answer, step_ns
from tests.planner.tiny_problems import tiny_problem

ALL = list(islice((seed for seed in count() if len(tiny_problem(seed).devices) > 2), 25))
SEVERAL = list(islice((seed for seed in count() if len(tiny_problem(seed).hosts) > 1), 25))
RECEIVE = Receive(same_ns=0, inside_ns=5, near_ns=5, far_ns=20)


def scattered(problem: Problem) -> Problem:
    """Return the problem with every device in a host of its own."""

    def moved(block: Block) -> Block:
        return replace(
            block, options=tuple(replace(option, sites=tuple(sorted(option.devices))) for option in block.options)
        )

    count = len(problem.devices)
    groups = enumerate(problem.groups)
    return replace(
        problem,
        hosts=tuple((device,) for device in range(count)),
        alike=tuple(range(count)),
        message_ns=(0,) * count,
        awake_ns=(None,) * count,
        waits_ns=((),) * count,
        groups=tuple(replace(g, site=count + n if len(g.devices) > 1 else g.devices[0]) for n, g in groups),
        first=moved(problem.first),
        last=moved(problem.last),
        tail=moved(problem.tail) if problem.tail else None,
    )


def test_no_answer_takes_less_than_the_bound_for_its_hosts_and_devices() -> None:
    problems = [*map(tiny_problem, SEVERAL), *(scattered(tiny_problem(seed)) for seed in ALL)]
    for number, problem in enumerate(problems):
        bound = in_use(problem, [])
        known: dict[tuple[int, int], float] = {}
        for answer in islice(every_answer(problem), 0, 6000, 20):
            used = devices_in_use(problem, answer)
            hosts = len({problem.host_of[device] for device in used})
            if (hosts, len(used)) not in known:
                pairs = ((h, d) for h in range(1, hosts + 1) for d in range(len(used), len(problem.devices) + 1))
                known[hosts, len(used)] = max(bound.least_ns(h, d) for h, d in pairs)
            assert known[hosts, len(used)] <= step_ns(problem, answer), f"{number}: {answer}"


def test_the_bound_rises_with_the_hosts_and_falls_with_the_devices() -> None:
    for seed in SEVERAL:
        bound, most = in_use(tiny_problem(seed), []), len(tiny_problem(seed).devices)
        for devices in (*range(1, most + 1), math.inf):
            by_hosts = [bound.least_ns(hosts, devices) for hosts in (2, 3, 4, 5)]
            assert by_hosts == sorted(by_hosts)
            assert bound.least_ns(2, devices + 1) <= by_hosts[0]


def block(hosts: int, devices: int, ns: float) -> Part:
    return Part(hosts=hosts, devices=devices, receive=RECEIVE, ns=ns)


def stage(hosts: int, devices: int, layer_ns: float) -> Part:
    return Part(hosts=hosts, devices=devices, receive=RECEIVE, layer_ns=(layer_ns,), hop_ns=20)


def bound(stages: list[Part], last: list[Part]) -> InUse:
    """Return the bound for 10 layers, messages of 3 ns, and a first block that takes nothing on one device."""
    free = (Part(hosts=1, devices=1, receive=Receive(same_ns=0, inside_ns=0, near_ns=0, far_ns=0)),)
    return InUse(layers=(10,), message_ns=3, stages=tuple(stages), blocks=(free, tuple(last)))


def close(found: float, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=1e-6)


def test_an_answer_of_parts_on_one_host_each_receives_from_afar_for_each_host_more() -> None:
    apart = bound([stage(1, 1, 100)], [block(1, 1, 50)])
    assert [close(apart.least_ns(hosts), 1050 + 23 * (hosts - 1)) for hosts in (1, 2, 4)] == [True] * 3


def test_what_a_part_receives_from_its_own_devices_is_not_counted_again_from_afar() -> None:
    last = Part(hosts=1, devices=1, receive=Receive(same_ns=10, inside_ns=10, near_ns=15, far_ns=20), ns=50)
    apart = bound([stage(1, 1, 100)], [last])
    assert close(apart.least_ns(1), 1000 + 50 + 10)
    assert close(apart.least_ns(2), 1000 + 50 + 20 + 3)


def test_a_block_over_several_hosts_receives_from_a_stage_on_one() -> None:
    wide = bound([stage(1, 1, 100)], [block(1, 1, 50), block(2, 2, 20)])
    assert close(wide.least_ns(1), 1000 + (20 + 5))
    assert close(wide.least_ns(2), 1000 + (20 + 5) + 3)
    assert close(wide.least_ns(2, 2), 1028)
    assert close(wide.least_ns(3, 3), 1000 + (20 + 5) + 2 * 3), (
        "the third host may have a part that costs nothing there"
    )


def test_a_block_over_more_hosts_than_any_stage_receives_from_other_devices() -> None:
    last = [block(2, 4, 50), block(4, 8, 40)]
    assert close(bound([stage(2, 4, 100)], last).least_ns(2), 1000 + 5 + 40 + 5 + 3)
    assert close(bound([stage(2, 4, 100), stage(4, 8, 100)], last).least_ns(2), 1000 + 5 + 40 + 3)
    later = bound([stage(2, 4, 100), stage(4, 8, 150)], last)
    assert close(later.least_ns(2), 1000 + 5 + 40 + 5 + 3), "a last stage there costs 50 and a hop more"


def test_a_stage_that_is_the_only_one_has_all_layers() -> None:
    last = [block(2, 4, 80), block(4, 8, 40)]
    slower = bound([stage(2, 4, 100), stage(4, 8, 101)], last)
    assert close(slower.least_ns(2), 1000 + 5 + 40 + 5 + 3), "10 layers take 10 ns more there, one and a hop 21"


def test_the_devices_of_a_stage_are_told_what_was_accepted() -> None:
    for parts in ([stage(1, 4, 100)], [stage(2, 4, 100)]):
        told = [replace(part, told_ns=7) for part in parts]
        last = [block(parts[0].hosts, 4, 50)]
        assert close(bound(told, last).least_ns(1), bound(parts, last).least_ns(1) + 7)


def test_a_stage_over_several_hosts_costs_what_one_layer_takes_more_there() -> None:
    dear = bound([stage(1, 1, 100), stage(2, 2, 130)], [block(1, 1, 50)])
    assert close(dear.least_ns(2), min(1000 + 30, 1000 + 20) + 50 + 3)
    assert dear.least_ns(2, 1) == math.inf


def test_with_a_device_less_the_groups_that_need_it_are_left_out() -> None:
    groups = bound([stage(1, 1, 100), stage(1, 2, 60), stage(1, 4, 40)], [block(1, 1, 50)])
    assert [close(groups.least_ns(1, d), ns) for d, ns in ((1, 1050), (2, 650), (3, 650), (4, 450))] == [True] * 4
    assert close(groups.least_ns(2, 4), 600 + 50 + 23), "one of the four is on the other host"
    assert [groups.fewest_devices(limit, 4) for limit in (449, 451, 649, 651, 2000)] == [4, 4, 4, 2, 1]
    assert [groups.most_hosts(limit, 9, 4) for limit in (449, 451, 672, 674)] == [0, 1, 1, 2]


def test_a_cheaper_group_over_more_hosts_lowers_the_bound() -> None:
    problem = tiny_problem(SEVERAL[0])
    nothing = Receive(same_ns=0, inside_ns=0, near_ns=0, far_ns=0)
    free = WiderGroups(
        most_hosts=9,
        least_devices=3,
        layer_ns=(0.0,) * len(problem.kinds),
        network_hop_ns=0,
        told_ns=0,
        first=nothing,
        blocks=((0.0, nothing),) * len(list(problem.blocks)),
    )
    known, lower = in_use(problem, []), in_use(problem, [free])
    assert all(lower.least_ns(hosts) <= known.least_ns(hosts) for hosts in range(1, 10))
    assert math.isclose(lower.least_ns(9), 8 * problem.network_message_ns, abs_tol=1e-3)
