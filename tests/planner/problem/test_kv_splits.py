"""Divisions of the KV cache over a group, and the splits of KV heads over its members."""

from itertools import combinations
from math import comb
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from planner.problem.kv_splits import (
    MOST_BUNDLES,
    MOST_SPLITS,
    bundles,
    compositions,
    even,
    head_divisions,
    kv_divisions,
    repeated_head_divisions,
)
from plans.kv import KvDivision


@given(st.integers(1, 40), st.integers(1, 20), st.sampled_from([None, "heads", "context", "head_dim", "batch"]))
def test_divisions_are_legal_and_exist_for_every_axis_that_may_be_requested(
    size: int, kv_heads: int, requested: Any
) -> None:
    listed = kv_divisions(size, kv_heads, requested)
    assert len(set(listed)) == len(listed)
    for division in listed:
        assert sum(division.subgroups) == size
        assert len(division.subgroups) <= kv_heads
        assert division.axis == "heads" or max(division.subgroups) > 1
        assert max(division.subgroups) - min(division.subgroups) <= 1
        assert requested in (None, division.axis) or size == 1
    offered = {division.axis for division in listed}
    if size > 1:
        assert ("heads" in offered) == (requested in (None, "heads"))
        whole = KvDivision(axis="heads", subgroups=(1,) * size)
        assert (whole in listed) == (requested in (None, "heads") and size <= kv_heads)
        assert all(division == whole or size > kv_heads for division in listed if division.axis == "heads")
        assert ("context" in offered) == (requested in (None, "context"))
    else:
        assert offered == {"heads"}


def test_divisions_of_groups_with_more_members_than_heads() -> None:
    assert {division.subgroups for division in kv_divisions(16, 8, "heads")} == {(2,) * 8, (4,) * 4, (8, 8), (16,)}
    assert {division.subgroups for division in kv_divisions(16, 8, "context")} == {(2,) * 8, (4,) * 4, (8, 8), (16,)}
    assert {division.subgroups for division in kv_divisions(12, 8, "batch")} == {
        (2,) * 6,
        (3,) * 4,
        (4,) * 3,
        (6, 6),
        (12,),
        (2,) * 4 + (1,) * 4,
    }
    assert {division.subgroups for division in kv_divisions(5, 1, None)} == {(5,)}


@given(st.integers(1, 9), st.integers(1, 9))
def test_every_composition_is_listed_once(total: int, parts: int) -> None:
    if parts > total:
        assert list(compositions(total, parts)) == []
        return
    cuts = combinations(range(1, total), parts - 1)
    expected = [tuple(b - a for a, b in zip((0, *cut), (*cut, total), strict=True)) for cut in cuts]
    assert list(compositions(total, parts)) == expected


@given(st.integers(1, 300))
def test_bundles_are_equal(kv_heads: int) -> None:
    listed = bundles(kv_heads, ())
    assert kv_heads % listed == 0
    assert listed == kv_heads or listed <= MOST_BUNDLES or all(kv_heads % n for n in range(2, 17))


def test_known_bundles() -> None:
    assert [bundles(n, ()) for n in (1, 8, 16, 32, 64, 96, 40)] == [1, 8, 16, 16, 16, 16, 10]


def test_bundles_are_larger_where_there_are_many_splits() -> None:
    unlike = tuple((size, comb(8, size)) for size in range(1, 9))
    assert sum(number * comb(15, size - 1) for size, number in unlike) > MOST_SPLITS
    assert bundles(32, unlike) == 8
    assert bundles(8, unlike) == 8


@given(st.integers(1, 14), st.integers(1, 16))
def test_head_divisions_sum_to_all_heads_and_exist_for_up_to_one_member_per_head(kv_heads: int, parts: int) -> None:
    listed = head_divisions(kv_heads, bundles(kv_heads, ()), parts)
    assert bool(listed) == (parts <= kv_heads)
    assert all(sum(shares) == kv_heads and min(shares) >= 1 and len(shares) == parts for shares in listed)
    assert len(set(listed)) == len(listed)


@given(st.integers(1, 64), st.integers(1, 24), st.integers(1, 10))
def test_even_divisions_are_always_listed(kv_heads: int, parts: int, most_bundles: int) -> None:
    """However few bundles there are: with the larger shares at the start, and at the end."""
    fewer = next(n for n in range(min(most_bundles, kv_heads), 0, -1) if kv_heads % n == 0)
    shares = even(kv_heads, parts)
    listed = head_divisions(kv_heads, fewer, parts)
    assert listed == () if parts > kv_heads else {shares, shares[::-1]} <= set(listed)
    for hosts in (n for n in range(2, parts + 1) if parts <= kv_heads):
        assert shares in repeated_head_divisions(kv_heads, fewer, parts, hosts)
        if parts % hosts == 0 and kv_heads % hosts == 0:
            inside = even(kv_heads // hosts, parts // hosts)
            assert inside * hosts in repeated_head_divisions(kv_heads, fewer, parts, hosts)


@given(st.integers(1, 32), st.integers(2, 4), st.integers(1, 6))
def test_divisions_over_hosts_repeat_one_division_per_host(kv_heads: int, hosts: int, members: int) -> None:
    parts = hosts * members
    listed = repeated_head_divisions(kv_heads, bundles(kv_heads, ()), parts, hosts)
    assert bool(listed) == (parts <= kv_heads)
    for shares in listed:
        assert sum(shares) == kv_heads
        assert min(shares) >= 1
        assert kv_heads % hosts or shares in (shares[:members] * hosts, even(kv_heads, parts))
