"""What the solver is offered: candidate groups, divisions, and figures that agree with slots and buffers."""

import dataclasses
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import layout
from planner.cost import share_ns
from planner.formulate import MOST_COARSE_SHARES, Formulation, coarse_shares, compositions
from planner.inventory import parse_inventory
from planner.solve import Settings, solve
from plans.buffers import kv_bytes, whole_heads
from plans.schema import LayerClass
from tests.planner.instances import UNLIKE, Head, cpu, demo, formulation, host


def groups_of(*hosts: dict[str, Any], kv_heads: int = 4) -> list[set[str]]:
    """Candidate groups, by device ids."""
    data = {"hosts": list(hosts), "network": {"class": "ethernet"}}
    found = formulation(data, None)
    (layers,) = found.model.layers
    attention = dataclasses.replace(layers.attention, num_heads=8, num_kv_heads=kv_heads)
    model = dataclasses.replace(found.model, layers=(dataclasses.replace(layers, attention=attention),))
    problem = dataclasses.replace(found, model=model).problem
    return [{problem.devices[index] for index in group.devices} for group in problem.groups]


def test_equal_devices_are_offered_as_neighbours() -> None:
    found = groups_of(host("box", *(cpu(f"c{i}", 8) for i in range(4))))
    assert len(found) == 4 + 3 + 2 + 1
    assert {"c0", "c1"} in found
    assert {"c0", "c2"} not in found


def test_unlike_devices_are_offered_in_every_subset() -> None:
    found = groups_of(host("box", *(cpu(f"c{i}", 8 + i) for i in range(4))))
    assert len(found) == 2**4 - 1


def test_classes_of_equal_devices_are_combined() -> None:
    found = groups_of(host("box", cpu("a0", 8), cpu("a1", 8), cpu("b0", 9), cpu("b1", 9)))
    assert len(found) == (3 + 1) * (3 + 1) - 1
    assert {"a1", "b1"} in found


def test_reserve_counts_as_less_memory() -> None:
    other = cpu("c1", 9) | {"reserve": "1 MiB"}
    assert len(groups_of(host("box", cpu("c0", 8) | {"reserve": "0 B"}, other, cpu("c2", 8) | {"reserve": "0 B"}))) == 6


def test_links_of_their_own_tell_equal_devices_apart() -> None:
    pair = {"between": ["c0", "c2"], "class": "x", "latency": "1 us", "bandwidth": "1 GB/s"}
    found = groups_of(host("box", *(cpu(f"c{i}", 8) for i in range(3)), links={"class": "shm", "pairs": [pair]}))
    assert {"c0", "c2"} in found
    assert len(found) == 7


def test_no_group_crosses_hosts_or_outgrows_the_kv_heads() -> None:
    found = groups_of(
        host("a", cpu("a0", 8), cpu("a1", 8)), host("b", *(cpu(f"b{i}", 8) for i in range(4))), kv_heads=2
    )
    assert {len(group) for group in found} == {1, 2}
    assert not any({name[0] for name in group} == {"a", "b"} for group in found)


@given(st.integers(1, 9), st.integers(1, 9))
def test_compositions_are_all_there_once(total: int, parts: int) -> None:
    if parts > total:
        assert list(compositions(total, parts)) == []
        return
    cuts = combinations(range(1, total), parts - 1)
    expected = [tuple(b - a for a, b in zip((0, *cut), (*cut, total), strict=True)) for cut in cuts]
    assert list(compositions(total, parts)) == expected


@given(st.integers(1, 300))
def test_coarse_shares_are_equal_bundles(kv_heads: int) -> None:
    shares = coarse_shares(kv_heads)
    assert kv_heads % shares == 0
    assert shares == kv_heads or shares <= MOST_COARSE_SHARES or all(kv_heads % n for n in range(2, 17))


def test_known_coarse_shares() -> None:
    assert [coarse_shares(n) for n in (1, 8, 16, 32, 64, 96, 40)] == [1, 8, 16, 16, 16, 16, 10]


@pytest.mark.parametrize("head", ["eagle3", "eagle1", None])
def test_columns_have_exact_bytes_and_the_slowest_share(head: Head) -> None:
    found = formulation(UNLIKE, head)
    (layers,) = found.model.layers
    for group in found.problem.groups:
        assert all(sum(column.shares) == 4 and min(column.shares) >= 1 for column in group.columns)
        assert len({column.shares for column in group.columns}) == len(group.columns)
        for column in group.columns:
            for j, share in enumerate(column.shares):
                exact = layout.attention_bytes(found.model, "float32", layers, whole_heads(share), j == 0)
                none = layout.mlp_bytes(found.model, "float32", layers, 0, j == 0)
                assert column.bytes[j] == exact + none + kv_bytes(found.options, layers.attention, whole_heads(share))
    alone = next(group for group in found.problem.groups if group.devices == (0,))
    device = found.inventory.devices[0]
    (column,) = alone.columns
    traffic = layout.attention_bytes(found.model, "float32", layers, whole_heads(4), True) - 2 * 192 * 4
    cache = kv_bytes(found.options, layers.attention, whole_heads(4))
    assert column.ns >= device.overhead_ns + share_ns(device, traffic + cache, 0)


@pytest.mark.parametrize("head", ["eagle3", "eagle1"])
def test_the_tail_may_share_what_is_the_bases(head: Head) -> None:
    tail = formulation(UNLIKE, head).problem.tail
    assert tail is not None
    assert tail.shares_first
    assert tail.shares_last == (head == "eagle1")


def test_rows_come_in_bundles_that_divide_both_vocabularies() -> None:
    found = formulation(UNLIKE, "eagle3")
    assert found.row_unit == 64
    assert found.problem.first_rows * found.row_unit == found.model.vocab_size
    odd = dataclasses.replace(found, model=dataclasses.replace(found.model, vocab_size=2047))
    assert odd.row_unit == 1
    assert odd.problem.first_rows == 2047


class _Unfolded(Formulation):
    """Offers every subset, equal devices or not."""

    def _classes(self, host: str, *, apart: bool) -> list[tuple[int, ...]]:
        return super()._classes(host, apart=True)


@pytest.mark.parametrize("mib", [12, 13, 16, 24])
def test_folding_equal_devices_loses_no_time(mib: int) -> None:
    data = {"hosts": [host("box", *(cpu(f"c{i}", mib) for i in range(3)))]}
    folded = formulation(data, "eagle3")
    fields = {field.name: getattr(folded, field.name) for field in dataclasses.fields(folded)}
    unfolded = _Unfolded(**fields)
    assert len(unfolded.problem.groups) == len(folded.problem.groups) + 1
    answers = [solve(found.problem, Settings(workers=1)) for found in (folded, unfolded)]
    objectives = [answer and answer.objective_ns for answer in answers]
    assert objectives[0] == objectives[1] is not None


def test_a_model_of_one_layer() -> None:
    base, _ = demo(None)
    (layers,) = base.model.layers
    model = dataclasses.replace(
        base.model, layers=(LayerClass(num_layers=1, attention=layers.attention, mlp=layers.mlp),)
    )
    problem = dataclasses.replace(formulation(UNLIKE, None), model=model).problem
    solved = solve(problem, Settings(workers=1))
    assert solved is not None
    assert len(solved.answer.stages) == 1


def test_the_listing_order_changes_nothing() -> None:
    backwards = {"hosts": [h | {"devices": h["devices"][::-1]} for h in UNLIKE["hosts"][::-1]]}
    data = UNLIKE | backwards
    assert parse_inventory(data, "x") == parse_inventory(UNLIKE, "x")
    assert formulation(data, "eagle3").problem == formulation(UNLIKE, "eagle3").problem
