"""Candidate device sets of an inventory."""

from itertools import groupby
from typing import Any

import pytest

from planner.costs.topology import Fabric
from planner.errors import InputError
from planner.problem.device_sets import (
    Candidates,
)
from tests.planner.instances import cpu, host, inventory_of

ETHERNET = {"class": "ethernet"}


def candidates(*hosts: dict[str, Any]) -> Candidates:
    data: dict[str, Any] = {"hosts": list(hosts)}
    return Candidates(fabric=Fabric(inventory=inventory_of(data | ({"network": ETHERNET} if len(hosts) > 1 else {}))))


def sets_of(*hosts: dict[str, Any]) -> list[tuple[str, ...]]:
    offered = candidates(*hosts)
    names = [device.id for device in offered.inventory.devices]
    return [tuple(names[d] for d in members.devices) for members in offered.sets]


def test_equal_devices_are_offered_as_neighbours() -> None:
    offered = sets_of(host("box", *(cpu(f"c{i}", 8) for i in range(4))))
    assert len(offered) == 4 + 3 + 2 + 1
    assert ("c0", "c1") in offered
    assert ("c0", "c2") not in offered


def test_unlike_devices_are_offered_in_every_subset() -> None:
    assert len(sets_of(host("box", *(cpu(f"c{i}", 8 + i) for i in range(4))))) == 2**4 - 1


def test_classes_of_equal_devices_are_combined_and_adjacent() -> None:
    offered = sets_of(host("box", cpu("c0", 8), cpu("c1", 9), cpu("c2", 8), cpu("c3", 9)))
    assert len(offered) == (3 + 1) * (3 + 1) - 1
    assert ("c2", "c3") in offered
    assert ("c0", "c2", "c1", "c3") in offered


def test_reserve_counts_as_less_memory() -> None:
    other = cpu("c1", 9) | {"reserve": "1 MiB"}
    assert len(sets_of(host("box", cpu("c0", 8) | {"reserve": "0 B"}, other, cpu("c2", 8) | {"reserve": "0 B"}))) == 6


def test_equal_devices_with_different_links_are_distinguished() -> None:
    pair = {"between": ["c0", "c2"], "class": "x", "latency": "1 us", "bandwidth": "1 GB/s"}
    offered = sets_of(host("box", *(cpu(f"c{i}", 8) for i in range(3)), links={"class": "shm", "pairs": [pair]}))
    assert ("c0", "c2") in offered
    assert len(offered) == 7


def test_sets_over_equal_hosts_take_the_same_devices_of_each_host() -> None:
    boxes = [host(f"h{i}", cpu(f"h{i}a", 8), cpu(f"h{i}b", 8), cpu(f"h{i}c", 9)) for i in range(3)]
    wide = [members for members in sets_of(*boxes) if len({name[:2] for name in members}) > 1]
    parts = ["a", "ab", "c", "ac", "abc"]
    runs = [["h0", "h1"], ["h1", "h2"], ["h0", "h1", "h2"]]
    expected = {tuple(f"{name}{letter}" for name in run for letter in part) for part in parts for run in runs}
    assert set(wide) == expected
    assert len(wide) == len(expected)


def test_sets_over_unlike_hosts_take_devices_of_one_class() -> None:
    """Each host contributes the same number of a class, or all that it has; links inside a host do not matter."""

    def wide(*boxes: dict[str, Any]) -> set[tuple[str, ...]]:
        return {members for members in sets_of(*boxes) if len({name[0] for name in members}) > 1}

    two = host("a", cpu("a0", 8), cpu("a1", 8))
    assert wide(two, host("b", cpu("b0", 8))) == {("a0", "b0"), ("a0", "a1", "b0")}
    assert wide(two, host("b", cpu("b0", 9), cpu("b1", 8))) == {("a0", "b1"), ("a0", "a1", "b1")}
    assert wide(host("a", cpu("a0", 8)), host("b", cpu("b0", 9)), host("c", cpu("c0", 8))) == {("a0", "c0")}
    fast = {"class": "shm", "latency": "1 us"}
    assert wide(two, host("b", cpu("b0", 8), cpu("b1", 8), links=fast)) == {("a0", "b0"), ("a0", "a1", "b0", "b1")}
    assert wide(two, host("b", cpu("b0", 9))) == set()


def test_a_host_with_links_of_single_pairs_is_in_no_set_over_hosts() -> None:
    pair = {"between": ["b0", "b1"], "class": "x", "latency": "1 us", "bandwidth": "1 GB/s"}
    paired = host("b", cpu("b0", 8), cpu("b1", 8), links={"class": "shm", "pairs": [pair]})
    assert not [
        members for members in sets_of(host("a", cpu("a0", 8), cpu("a1", 8)), paired) if {"a0", "b0"} <= set(members)
    ]


def test_hosts_with_many_subsets_contribute_whole_or_half_classes() -> None:
    def box(name: str) -> dict[str, Any]:
        return host(name, *(cpu(f"{name}{i}", 8 + i // 2) for i in range(8)))

    wide = [
        members
        for members in sets_of(box("a"), box("b"))
        if any(d[0] == "a" for d in members) and any(d[0] == "b" for d in members)
    ]
    halves = 4  # one of the two devices of a class, for each of the four classes
    assert len(wide) == 2**4 - 1 + halves


def test_listed_sets_are_distinct_and_repeat_no_device() -> None:
    offered = candidates(*(host(f"h{i}", *(cpu(f"h{i}{j}", 8 + j % 2) for j in range(4))) for i in range(2)))
    assert len({members.devices for members in offered.sets}) == len(offered.sets)
    for members in offered.sets:
        assert len(set(members.devices)) == len(members.devices)
        assert members.hosts == tuple(sorted({offered.fabric.host_of[d] for d in members.devices}))
        classes = [offered.alike[d] for d in members.devices]
        assert len([*groupby(classes)]) == len(set(classes)), "devices of a class are adjacent"


def test_devices_of_the_same_host_and_class_are_alike() -> None:
    offered = candidates(host("a", cpu("a0", 8), cpu("a1", 9), cpu("a2", 8)), host("b", cpu("b0", 8)))
    a0, a1, a2, b0 = offered.alike
    assert a0 == a2
    assert len({a0, a1, b0}) == 3


def test_single_devices_list_a_cpu_after_the_gpus_of_its_host() -> None:
    gpus = [{"id": "gpu0", "type": "t4"}, {"id": "gpu1", "type": "l4"}]
    offered = candidates(host("b", cpu("cpu", 8), *gpus, links={"class": "pcie"}), host("a", cpu("c", 8)))
    names = [device.id for device in offered.inventory.devices]
    assert [names[members.devices[0]] for members in offered.singles] == ["c", "gpu0", "gpu1", "cpu"]


def test_too_many_unlike_devices_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"32767 candidate groups of devices, expected at most 20000: host box has 15 "
    ):
        sets_of(host("box", *(cpu(f"c{i}", 8 + i) for i in range(15))))
    assert len(sets_of(host("box", *(cpu(f"c{i}", 8) for i in range(64))))) == 64 * 65 // 2
