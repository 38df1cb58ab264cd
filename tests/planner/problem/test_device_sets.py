"""Candidate device sets of an inventory."""

import random
from itertools import groupby
from typing import Any

import pytest

from planner.errors import InputError
from planner.problem.device_sets import Candidates
from planner.problem.machine import canonical_machine
from tests.planner.instances import cpu, host, inventory_of

ETHERNET = {"class": "ethernet"}


def candidates(*hosts: dict[str, Any]) -> Candidates:
    data: dict[str, Any] = {"hosts": list(hosts)}
    inventory = inventory_of(data | ({"network": ETHERNET} if len(hosts) > 1 else {}))
    return Candidates(machine=canonical_machine(inventory))


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
    assert ("c3", "c2") in offered
    assert ("c1", "c3", "c0", "c2") in offered


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
    parts = ["a", "ab", "c", "ca", "cab"]
    runs = [["h0", "h1"], ["h1", "h2"], ["h0", "h1", "h2"]]
    expected = {tuple(f"{name}{letter}" for name in run for letter in part) for part in parts for run in runs}
    assert set(wide) == expected
    assert len(wide) == len(expected)


def test_sets_over_unlike_hosts_take_devices_of_one_class() -> None:
    """Each host contributes the same number of a look or speed, or all that it has; links inside do not matter."""

    def wide(*boxes: dict[str, Any]) -> set[tuple[str, ...]]:
        return {members for members in sets_of(*boxes) if len({name[0] for name in members}) > 1}

    two = host("a", cpu("a0", 8), cpu("a1", 8))
    assert wide(two, host("b", cpu("b0", 8))) == {("a0", "b0"), ("a0", "a1", "b0")}
    assert wide(two, host("b", cpu("b0", 9, 20), cpu("b1", 8))) == {("b1", "a0"), ("b1", "a0", "a1")}
    assert wide(host("a", cpu("a0", 8)), host("b", cpu("b0", 9, 20)), host("c", cpu("c0", 8))) == {("a0", "c0")}
    fast = {"class": "shm", "latency": "1 us"}
    assert wide(two, host("b", cpu("b0", 8), cpu("b1", 8), links=fast)) == {("b0", "a0"), ("b0", "b1", "a0", "a1")}
    assert wide(two, host("b", cpu("b0", 9, 20))) == set()


def test_devices_over_several_hosts_may_differ_in_memory_alone() -> None:
    hosts = [host(name, cpu(f"{name}0", mib)) for name, mib in (("a", 8), ("b", 9), ("c", 8))]
    joined = {frozenset(members) for members in sets_of(*hosts) if len(members) > 1}
    assert joined == {frozenset(f"{name}0" for name in names) for names in ("ab", "bc", "ac", "abc")}


@pytest.mark.parametrize("count", [8, 40])
def test_of_many_unequal_hosts_runs_or_blocks_join(count: int) -> None:
    many = candidates(*(host(f"h{i:02}", cpu(f"h{i:02}a", 8 + i)) for i in range(count)))
    joined = {members.hosts for members in many.sets if len(members.hosts) > 1}
    assert tuple(range(count)) in joined
    assert {(2 * i, 2 * i + 1) for i in range(count // 2)} <= joined
    assert len(joined) == {8: 28, 40: 20 + 10 + 5 + 2 + 1 + 1}[count]


def test_hosts_join_with_all_that_they_have_in_common_whatever_else_one_has() -> None:
    both = [(cpu(f"{name}0", 8), cpu(f"{name}1", 8, 20)) for name in "ab"]
    pairs = {frozenset(members) for members in sets_of(host("a", *both[0]), host("b", *both[1]))}
    more = {frozenset(members) for members in sets_of(host("a", *both[0], cpu("a2", 8, 30)), host("b", *both[1]))}
    assert frozenset(("a0", "a1", "b0", "b1")) in pairs
    assert pairs < more


def test_all_combinations_of_few_unlike_hosts_are_offered() -> None:
    """Three hosts that differ in what else they have: any two, and all three, may join, whatever their names."""
    hosts = [host(name, cpu(f"{name}0", 8), cpu(f"{name}1", 9 + i)) for i, name in enumerate("abc")]
    joined = {frozenset(members) for members in sets_of(*hosts) if len(members) > 1 and members[0][1] == "0"}
    assert {frozenset(name for name in members) for members in joined} >= {
        frozenset(f"{name}0" for name in names) for names in ("ab", "bc", "ac", "abc")
    }


PAIR = {"class": "x", "latency": "1 us", "bandwidth": "9 GB/s"}


def bridged(name: str, count: int, bridges: int, mib: int = 8) -> dict[str, Any]:
    """Return a host with equal devices, of which the first are linked in pairs."""
    pairs = [{"between": [f"{name}{2 * i}", f"{name}{2 * i + 1}"]} | PAIR for i in range(bridges)]
    return host(name, *(cpu(f"{name}{i}", mib) for i in range(count)), links={"class": "shm", "pairs": pairs})


def test_hosts_with_pairs_join_sets_over_several_hosts() -> None:
    offered = sets_of(bridged("a", 2, 1), host("b", cpu("b0", 8), cpu("b1", 8)))
    assert {"a0", "a1", "b0", "b1"} in [set(members) for members in offered]
    equal = {members for members in sets_of(bridged("a", 4, 2), bridged("b", 4, 2)) if {"a0", "b0"} <= set(members)}
    assert equal == {tuple(f"{name}{i}" for name in "ab" for i in range(n)) for n in (1, 2, 3, 4)}


def test_bridges_are_enumerated_by_their_symmetry() -> None:
    """Runs along the bridges, and one end of each of a run of bridges: 136 + 2 * 28 sets instead of 65535."""
    offered = set(sets_of(bridged("g", 16, 8)))
    assert len(offered) == 16 * 17 // 2 + 2 * (8 * 7 // 2)
    assert {("g2", "g3"), ("g0", "g1", "g2", "g3"), ("g1", "g3", "g5"), tuple(f"g{i}" for i in range(16))} <= offered
    assert ("g0", "g3") not in offered


def test_bridges_of_two_types_of_devices_are_combined() -> None:
    halves = [bridged("a", 8, 4), bridged("b", 8, 4, mib=9)]
    pairs = [pair for half in halves for pair in half["links"]["pairs"]]
    devices = [entry for half in halves for entry in half["devices"]]
    offered = sets_of({"name": "box", "links": {"class": "shm", "pairs": pairs}, "devices": devices})
    assert len(offered) == (8 * 9 // 2 + 2 * 6 + 1) ** 2 - 1


@pytest.mark.parametrize("unlike", [2, 3, 16])
def test_sixteen_devices_with_eight_bridges_are_never_too_many(unlike: int) -> None:
    """However many types there are, and whatever the bridges join: every bridge is a candidate, and so are all."""
    rng = random.Random(unlike)
    devices = [cpu(f"g{i}", 8 + (i if unlike == 16 else rng.randrange(unlike))) for i in range(16)]
    pairs = [{"between": [f"g{2 * i}", f"g{2 * i + 1}"]} | PAIR for i in range(8)]
    offered = candidates({"name": "box", "links": {"class": "shm", "pairs": pairs}, "devices": devices})
    names = [device.id for device in offered.inventory.devices]
    sets = {frozenset(names[device] for device in members.devices) for members in offered.sets}
    assert len(sets) == len(offered.sets) <= 5000
    assert {frozenset(pair["between"]) for pair in pairs} | {frozenset(names)} <= sets


def test_few_devices_that_are_linked_unlike_are_offered_in_every_subset() -> None:
    assert len(sets_of(bridged("g", 4, 2))) == 2**4 - 1
    ring = [{"between": [f"g{i}", f"g{(i + 1) % 8}"]} | PAIR for i in range(8)]
    assert len(sets_of(host("h", *(cpu(f"g{i}", 8) for i in range(8)), links={"class": "shm", "pairs": ring}))) == 255


def test_a_long_ring_is_offered_in_runs() -> None:
    ring = [{"between": [f"g{i}", f"g{(i + 1) % 12}"]} | PAIR for i in range(12)]
    offered = sets_of(host("h", *(cpu(f"g{i}", 8) for i in range(12)), links={"class": "shm", "pairs": ring}))
    assert len(offered) == 12 * 13 // 2
    linked = {frozenset(pair["between"]) for pair in ring}
    twos = [frozenset(members) for members in offered if len(members) == 2]
    assert set(twos) < linked, "consecutive devices are linked by the ring"


def test_hosts_with_many_subsets_contribute_whole_or_half_classes() -> None:
    def box(name: str) -> dict[str, Any]:
        return host(name, *(cpu(f"{name}{i}", 8, 10 + i // 2) for i in range(8)))

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
        assert members.devices == tuple(sorted(members.devices))
        assert members.hosts == tuple(sorted({offered.fabric.host_of[d] for d in members.devices}))
        classes = [offered.alike[d] for d in members.devices]
        assert len([*groupby(classes)]) == len(set(classes)), "devices of a class are adjacent"


def test_devices_of_the_same_host_and_look_are_alike() -> None:
    offered = candidates(host("a", cpu("a0", 8), cpu("a1", 9), cpu("a2", 8)), host("b", cpu("b0", 8)))
    numbers = {device.id: number for device, number in zip(offered.inventory.devices, offered.alike, strict=True)}
    a0, a1, a2, b0 = (numbers[name] for name in ("a0", "a1", "a2", "b0"))
    assert a0 == a2
    assert len({a0, a1, b0}) == 3


def test_single_devices_list_a_cpu_after_the_gpus_of_its_host() -> None:
    """GPUs come first, the larger before the smaller, and larger hosts before smaller ones."""
    gpus = [{"id": "gpu0", "type": "t4"}, {"id": "gpu1", "type": "l4"}]
    offered = candidates(host("b", cpu("cpu", 8), *gpus, links={"class": "pcie"}), host("a", cpu("c", 8)))
    names = [device.id for device in offered.inventory.devices]
    assert [names[members.devices[0]] for members in offered.singles] == ["gpu1", "gpu0", "cpu", "c"]


def test_too_many_unlike_devices_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"32767 candidate groups of devices, expected at most 20000: host box has 15 "
    ):
        sets_of(host("box", *(cpu(f"c{i}", 8 + i) for i in range(15))))
    assert len(sets_of(host("box", *(cpu(f"c{i}", 8) for i in range(64))))) == 64 * 65 // 2
