"""One machine gives one problem and one plan, however it is written."""

import dataclasses
import random
from collections.abc import Iterable
from itertools import combinations, pairwise, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.costs.topology import links_of
from planner.problem.machine import Machine, canonical_machine
from planner.solver.problem import Problem
from plans.schema import Plan, Strategy
from tests.planner.instances import Head, formulation, host, inventory_of, planned
from tests.planner.machines import FAST, NETWORK, SLOW, Listed, device, random_machine, rewritten

seeds = st.integers(0, 10**6)


def problem_of(machine: Listed, head: Head = "eagle3", strategy: Strategy = "latency") -> Problem:
    """Return the problem of the demo on a machine, without names."""
    formulated = formulation(machine, head)
    options = dataclasses.replace(formulated.options, strategy=strategy)
    problem = dataclasses.replace(formulated, options=options).problem
    return dataclasses.replace(problem, devices=("",) * len(problem.devices))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, strategy=st.sampled_from(("latency", "balanced")))
def test_a_machine_written_another_way_gives_the_same_problem(seed: int, strategy: Strategy) -> None:
    rng = random.Random(seed)
    machine = random_machine(rng, 3, 4, 8 << 10)
    other, _ = rewritten(rng, machine)
    assert problem_of(machine, strategy=strategy) == problem_of(other, strategy=strategy)


@settings(max_examples=200, deadline=None)
@given(seed=seeds)
def test_the_canonical_machine_is_one_up_to_names(seed: int) -> None:
    """Large hosts too: looks, hosts and the link of every pair are in the same order, whatever the names."""
    rng = random.Random(seed)
    machine = random_machine(rng, 4, 16, 8 << 10)
    other, renamed = rewritten(rng, machine)
    one, two = (canonical_machine(inventory_of(data)) for data in (machine, other))
    assert _without_names(one) == _without_names(two)
    of_host = {renamed[device.id]: device.host for device in one.inventory.devices}
    pairs = {(of_host[device.id], device.host) for device in two.inventory.devices}
    assert len(pairs) == len(one.inventory.hosts), "devices of a host stay together"


def _without_names(machine: Machine) -> tuple[Any, ...]:
    inventory = machine.inventory
    names = [listed.name for listed in inventory.hosts]
    links = links_of(inventory)
    ids = [device.id for device in inventory.devices]
    return (
        machine.looks,
        [names.index(device.host) for device in inventory.devices],
        [(links[frozenset(p)].latency_ns, links[frozenset(p)].bandwidth_bytes_per_s) for p in combinations(ids, 2)],
        [module.form for module in machine.modules],
        machine.equal_hosts,
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_machine_written_another_way_gets_the_same_placement(seed: int) -> None:
    """After names are mapped to places in the canonical machine, plans agree in all but names."""
    rng = random.Random(seed)
    machine = random_machine(rng, 2, 3, 32 << 10)
    other, _ = rewritten(rng, machine)
    assert _placement(planned(machine, "eagle3").plan) == _placement(planned(other, "eagle3").plan)


def _placement(plan: Plan) -> tuple[Any, ...]:
    devices = canonical_machine(plan.inventory).inventory.devices
    place = {device.id: number for number, device in enumerate(devices)}

    def placed(parts: Iterable[Any]) -> list[Any]:
        return [dataclasses.replace(part, devices=tuple(place[name] for name in part.devices)) for part in parts]

    drafter = [plan.draft_placement] if plan.draft_placement else []
    memory = {place[line.device]: dataclasses.replace(line, device="") for line in plan.memory}
    return placed([plan.embed, *plan.stages, plan.head, *drafter]), memory, plan.proof


def test_pairs_linked_as_their_host_are_no_pairs() -> None:
    pairs = [{"between": ["a", "b"]} | SLOW, {"between": ["b", "c"]} | FAST]
    inventory = inventory_of(
        {"hosts": [host("h", *(device(name, 8) for name in "abc"), links=SLOW | {"pairs": pairs})]}
    )
    (listed,) = inventory.hosts
    assert [(pair.a, pair.b) for pair in listed.pairs] == [("b", "c")]


def test_the_link_of_a_host_with_one_device_tells_nothing() -> None:
    links = (SLOW, FAST)
    hosts = [host(name, device(f"{name}0", 8), links=link) for name, link in zip("ab", links, strict=True)]
    machine = canonical_machine(inventory_of({"hosts": hosts, "network": NETWORK}))
    assert machine.equal_hosts == ((0, 1),)


def test_devices_are_told_apart_by_their_links() -> None:
    """A bridge joins two of four equal devices: the two others are alike, and so are the two of the bridge."""
    pairs = [{"between": ["b", "d"]} | FAST]
    data = {"hosts": [host("h", *(device(name, 8) for name in "abcd"), links=SLOW | {"pairs": pairs})]}
    (module,) = canonical_machine(inventory_of(data)).modules
    assert [[len(part.devices) for part in parts] for parts in module.classes] == [[2], [1, 1]]


def test_irregular_links_have_one_canonical_order() -> None:
    """Four devices along a path of bridges: under every naming, one order along the path, or its mirror image."""
    orders = set()
    for names in permutations("abcd"):
        pairs = [{"between": list(pair)} | FAST for pair in pairwise(names)]
        data = {"hosts": [host("h", *(device(name, 8) for name in "abcd"), links=SLOW | {"pairs": pairs})]}
        machine = canonical_machine(inventory_of(data))
        (module,) = machine.modules
        assert module.kind == "irregular"
        places = tuple(names.index(machine.inventory.devices[d].id) for d in module.devices)
        orders.add(min(places, tuple(3 - place for place in places)))
    assert len(orders) == 1
