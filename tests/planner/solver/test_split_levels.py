"""Splits told by their time: the same answers as with every split listed, and splits for any sums."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.families import load_base
from planner.problem.formulate import Formulation
from planner.solver import split_levels as levels_module
from planner.solver.certify import certify
from planner.solver.minimise import Settings
from planner.solver.problem import Split
from planner.solver.solve import solve
from planner.solver.split_levels import levels
from tests.planner.instances import TINY, gpu, host, inventory_of, options_of, saved


def splits_of(total: int, ns: list[list[int]], nbytes: list[tuple[int, int]]) -> tuple[Split, ...]:
    """All divisions, each member with one share at least; ``ns`` of each share of each member."""
    found = []
    for shares in product(range(1, total + 1), repeat=len(ns)):
        if sum(shares) == total:
            time = max(times[share - 1] for times, share in zip(ns, shares, strict=True))
            load = tuple(fixed + each * share for (fixed, each), share in zip(nbytes, shares, strict=True))
            found.append(Split(shares=shares, ns=time, bytes=load))
    return tuple(found)


EQUAL = splits_of(8, [[10, 20, 30, 40, 50, 60, 70, 80]] * 4, [(5, 7)] * 4)


def test_equal_members_have_a_level_for_each_largest_share() -> None:
    found = levels(EQUAL)
    assert found is not None
    assert found.ns == (20, 30, 40, 50)
    assert (found.total, found.least) == (8, (1, 1, 1, 1))
    assert found.most == ((2, 2, 2, 2), (3, 3, 3, 3), (4, 4, 4, 4), (5, 5, 5, 5))
    assert (found.fixed_bytes, found.each_bytes) == ((5, 5, 5, 5), (7, 7, 7, 7))


def test_splits_that_sums_do_not_tell_stay_splits() -> None:
    even = next(split for split in EQUAL if split.shares == (2, 2, 2, 2))
    rest = tuple(split for split in EQUAL if split != even)
    assert levels(rest) is None, "one is missing"
    slower = tuple(replace(split, ns=31) if split.shares == (1, 1, 3, 3) else split for split in EQUAL)
    assert levels(slower) is None, "one takes more than its slowest share"
    uneven = Split(shares=even.shares, ns=even.ns, bytes=(even.bytes[0] + 1, *even.bytes[1:]))
    assert levels((uneven, *rest)) is None, "bytes do not grow evenly"
    assert levels(EQUAL[:3]) is None, "few"


@given(st.data())
def test_there_are_splits_for_any_sums_within_a_level(data: st.DataObject) -> None:
    found = levels(EQUAL)
    assert found is not None
    level = data.draw(st.integers(0, len(found.ns) - 1))
    listed = [split for split in EQUAL if split.ns <= found.ns[level]]
    layers = data.draw(st.lists(st.sampled_from(listed), min_size=1, max_size=30))
    sums = [sum(split.shares[j] for split in layers) for j in range(4)]
    divided = found.divided(len(layers), sums)
    assert sum(count for _, count in divided) == len(layers)
    assert [sum(count * shares[j] for shares, count in divided) for j in range(4)] == sums
    assert {shares for shares, _ in divided} <= {split.shares for split in listed}
    assert len({shares for shares, _ in divided}) == len(divided) <= 8


@pytest.mark.parametrize("kib", [[700] * 4, [760] * 4, [900] * 4, [1000] * 3])
def test_the_step_is_the_same_as_with_every_split(
    kib: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TINY | {"num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 6}
    base = load_base(saved(tmp_path / "base", config))
    devices = [gpu(f"gpu{i}", size) for i, size in enumerate(kib)]
    box = host("box", *devices, links={"class": "nvlink", "latency": "1 us"})
    inventory = inventory_of({"hosts": [box]}, "bfloat16")
    options = options_of(base, None, 512, "bfloat16")
    problem = Formulation(model=base.model, draft=None, options=options, inventory=inventory).problem
    assert any(levels(group.splits[0]) for group in problem.groups)
    by_level = solve(problem, Settings())
    monkeypatch.setattr(levels_module, "MANY_COLUMNS", 10**9)
    levels.cache_clear()
    by_split = solve(problem, Settings())
    levels.cache_clear()
    assert by_level is not None
    assert by_split is not None
    assert (by_level.objective_ns, len(by_level.answer.stages)) == (
        by_split.objective_ns,
        len(by_split.answer.stages),
    )
    assert certify(problem, by_level.answer).step_ns == by_level.objective_ns
