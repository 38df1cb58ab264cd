"""Sets of devices that are offered, and the ways in which they may divide the KV cache."""

from itertools import combinations, groupby
from math import comb
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.costs.topology import Fabric
from planner.errors import InputError
from planner.problem.device_sets import (
    MOST_BUNDLES,
    MOST_COLUMNS,
    Candidates,
    bundles,
    compositions,
    divisions,
    even,
    repeated_divisions,
    ways,
)
from plans.kv import KvDivision
from tests.planner.instances import cpu, host, inventory_of

ETHERNET = {"class": "ethernet"}


def candidates(*hosts: dict[str, Any]) -> Candidates:
    data: dict[str, Any] = {"hosts": list(hosts)}
    return Candidates(fabric=Fabric(inventory=inventory_of(data | ({"network": ETHERNET} if len(hosts) > 1 else {}))))


def sets_of(*hosts: dict[str, Any]) -> list[tuple[str, ...]]:
    found = candidates(*hosts)
    names = [device.id for device in found.inventory.devices]
    return [tuple(names[d] for d in each.devices) for each in found.sets]


def test_equal_devices_are_offered_as_neighbours() -> None:
    found = sets_of(host("box", *(cpu(f"c{i}", 8) for i in range(4))))
    assert len(found) == 4 + 3 + 2 + 1
    assert ("c0", "c1") in found
    assert ("c0", "c2") not in found


def test_unlike_devices_are_offered_in_every_subset() -> None:
    assert len(sets_of(host("box", *(cpu(f"c{i}", 8 + i) for i in range(4))))) == 2**4 - 1


def test_classes_of_equal_devices_are_combined_and_adjoin() -> None:
    found = sets_of(host("box", cpu("c0", 8), cpu("c1", 9), cpu("c2", 8), cpu("c3", 9)))
    assert len(found) == (3 + 1) * (3 + 1) - 1
    assert ("c2", "c3") in found
    assert ("c0", "c2", "c1", "c3") in found


def test_reserve_counts_as_less_memory() -> None:
    other = cpu("c1", 9) | {"reserve": "1 MiB"}
    assert len(sets_of(host("box", cpu("c0", 8) | {"reserve": "0 B"}, other, cpu("c2", 8) | {"reserve": "0 B"}))) == 6


def test_links_of_their_own_tell_equal_devices_apart() -> None:
    pair = {"between": ["c0", "c2"], "class": "x", "latency": "1 us", "bandwidth": "1 GB/s"}
    found = sets_of(host("box", *(cpu(f"c{i}", 8) for i in range(3)), links={"class": "shm", "pairs": [pair]}))
    assert ("c0", "c2") in found
    assert len(found) == 7


def test_equal_hosts_lend_the_same_part() -> None:
    boxes = [host(f"h{i}", cpu(f"h{i}a", 8), cpu(f"h{i}b", 8), cpu(f"h{i}c", 9)) for i in range(3)]
    wide = [each for each in sets_of(*boxes) if len({name[:2] for name in each}) > 1]
    parts = ["a", "ab", "c", "ac", "abc"]
    runs = [["h0", "h1"], ["h1", "h2"], ["h0", "h1", "h2"]]
    expected = {tuple(f"{name}{letter}" for name in run for letter in part) for part in parts for run in runs}
    assert set(wide) == expected
    assert len(wide) == len(expected)


def test_unlike_hosts_lend_devices_that_look_alike() -> None:
    """So many of each, or all that a host has, and whatever link there is inside."""

    def wide(*boxes: dict[str, Any]) -> set[tuple[str, ...]]:
        return {each for each in sets_of(*boxes) if len({name[0] for name in each}) > 1}

    two = host("a", cpu("a0", 8), cpu("a1", 8))
    assert wide(two, host("b", cpu("b0", 8))) == {("a0", "b0"), ("a0", "a1", "b0")}
    assert wide(two, host("b", cpu("b0", 9), cpu("b1", 8))) == {("a0", "b1"), ("a0", "a1", "b1")}
    assert wide(host("a", cpu("a0", 8)), host("b", cpu("b0", 9)), host("c", cpu("c0", 8))) == {("a0", "c0")}
    fast = {"class": "shm", "latency": "1 us"}
    assert wide(two, host("b", cpu("b0", 8), cpu("b1", 8), links=fast)) == {("a0", "b0"), ("a0", "a1", "b0", "b1")}
    assert wide(two, host("b", cpu("b0", 9))) == set()


def test_hosts_with_pairs_lend_nothing() -> None:
    pair = {"between": ["b0", "b1"], "class": "x", "latency": "1 us", "bandwidth": "1 GB/s"}
    paired = host("b", cpu("b0", 8), cpu("b1", 8), links={"class": "shm", "pairs": [pair]})
    assert not [each for each in sets_of(host("a", cpu("a0", 8), cpu("a1", 8)), paired) if {"a0", "b0"} <= set(each)]


def test_only_whole_classes_of_hosts_with_many_parts() -> None:
    def box(name: str) -> dict[str, Any]:
        return host(name, *(cpu(f"{name}{i}", 8 + i // 2) for i in range(8)))

    wide = [
        each
        for each in sets_of(box("a"), box("b"))
        if any(d[0] == "a" for d in each) and any(d[0] == "b" for d in each)
    ]
    halves = 4  # one of each of two devices that look alike
    assert len(wide) == 2**4 - 1 + halves


def test_each_listed_set_is_one_of_distinct_devices() -> None:
    found = candidates(*(host(f"h{i}", *(cpu(f"h{i}{j}", 8 + j % 2) for j in range(4))) for i in range(2)))
    assert len({each.devices for each in found.sets}) == len(found.sets)
    for each in found.sets:
        assert len(set(each.devices)) == len(each.devices)
        assert each.hosts == tuple(sorted({found.fabric.host_of[d] for d in each.devices}))
        classes = [found.alike[d] for d in each.devices]
        assert len([*groupby(classes)]) == len(set(classes)), "devices of a class adjoin"


def test_alike_are_devices_of_one_host_and_class() -> None:
    found = candidates(host("a", cpu("a0", 8), cpu("a1", 9), cpu("a2", 8)), host("b", cpu("b0", 8)))
    a0, a1, a2, b0 = found.alike
    assert a0 == a2
    assert len({a0, a1, b0}) == 3


def test_alone_a_cpu_comes_after_the_gpus_of_its_host() -> None:
    gpus = [{"id": "gpu0", "type": "t4"}, {"id": "gpu1", "type": "l4"}]
    found = candidates(host("b", cpu("cpu", 8), *gpus, links={"class": "pcie"}), host("a", cpu("c", 8)))
    names = [device.id for device in found.inventory.devices]
    assert [names[each.devices[0]] for each in found.singles] == ["c", "gpu0", "gpu1", "cpu"]


def test_too_many_unlike_devices_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"32767 candidate groups of devices, expected at most 20000: host box has 15 "
    ):
        sets_of(host("box", *(cpu(f"c{i}", 8 + i) for i in range(15))))
    assert len(sets_of(host("box", *(cpu(f"c{i}", 8) for i in range(64))))) == 64 * 65 // 2


@given(st.integers(1, 40), st.integers(1, 20), st.sampled_from([None, "heads", "context", "head_dim", "batch"]))
def test_ways_are_legal_and_there_is_always_one_unless_asked(size: int, kv_heads: int, asked: Any) -> None:
    found = ways(size, kv_heads, asked)
    assert len(set(found)) == len(found)
    for way in found:
        assert sum(way.subgroups) == size
        assert len(way.subgroups) <= kv_heads
        assert way.axis == "heads" or max(way.subgroups) > 1
        assert max(way.subgroups) - min(way.subgroups) <= 1
        assert asked in (None, way.axis) or size == 1
    offered = {way.axis for way in found}
    if size > 1:
        assert ("heads" in offered) == (asked in (None, "heads"))
        whole = KvDivision(axis="heads", subgroups=(1,) * size)
        assert (whole in found) == (asked in (None, "heads") and size <= kv_heads)
        assert all(way == whole or size > kv_heads for way in found if way.axis == "heads")
        assert ("context" in offered) == (asked in (None, "context"))
    else:
        assert offered == {"heads"}


def test_more_members_than_heads() -> None:
    assert {way.subgroups for way in ways(16, 8, "heads")} == {(2,) * 8, (4,) * 4, (8, 8), (16,)}
    assert {way.subgroups for way in ways(16, 8, "context")} == {(2,) * 8, (4,) * 4, (8, 8), (16,)}
    assert {way.subgroups for way in ways(12, 8, "batch")} == {
        (2,) * 6,
        (3,) * 4,
        (4,) * 3,
        (6, 6),
        (12,),
        (2,) * 4 + (1,) * 4,
    }
    assert {way.subgroups for way in ways(5, 1, None)} == {(5,)}


@given(st.integers(1, 9), st.integers(1, 9))
def test_compositions_are_all_there_once(total: int, parts: int) -> None:
    if parts > total:
        assert list(compositions(total, parts)) == []
        return
    cuts = combinations(range(1, total), parts - 1)
    expected = [tuple(b - a for a, b in zip((0, *cut), (*cut, total), strict=True)) for cut in cuts]
    assert list(compositions(total, parts)) == expected


@given(st.integers(1, 300))
def test_bundles_are_equal(kv_heads: int) -> None:
    found = bundles(kv_heads, ())
    assert kv_heads % found == 0
    assert found == kv_heads or found <= MOST_BUNDLES or all(kv_heads % n for n in range(2, 17))


def test_known_bundles() -> None:
    assert [bundles(n, ()) for n in (1, 8, 16, 32, 64, 96, 40)] == [1, 8, 16, 16, 16, 16, 10]


def test_bundles_are_larger_where_there_are_many_splits() -> None:
    unlike = tuple((size, comb(8, size)) for size in range(1, 9))
    assert sum(number * comb(15, size - 1) for size, number in unlike) > MOST_COLUMNS
    assert bundles(32, unlike) == 8
    assert bundles(8, unlike) == 8


@given(st.integers(1, 14), st.integers(1, 16))
def test_divisions_are_whole_and_every_group_up_to_the_heads_has_one(kv_heads: int, parts: int) -> None:
    found = divisions(kv_heads, bundles(kv_heads, ()), parts)
    assert bool(found) == (parts <= kv_heads)
    assert all(sum(shares) == kv_heads and min(shares) >= 1 and len(shares) == parts for shares in found)
    assert len(set(found)) == len(found)


@given(st.integers(1, 32), st.integers(2, 4), st.integers(1, 6))
def test_divisions_over_hosts_are_the_same_in_each(kv_heads: int, hosts: int, each: int) -> None:
    parts = hosts * each
    found = repeated_divisions(kv_heads, bundles(kv_heads, ()), parts, hosts)
    assert bool(found) == (parts <= kv_heads)
    for shares in found:
        assert sum(shares) == kv_heads
        assert min(shares) >= 1
        if kv_heads % hosts == 0:
            assert shares == shares[:each] * hosts
    assert found == () or even(kv_heads, parts) in found or kv_heads % hosts == 0
