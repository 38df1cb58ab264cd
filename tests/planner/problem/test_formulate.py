"""The formulated problem: candidate groups, splits, and bytes that agree with the tables of slots and buffers."""

import dataclasses
from itertools import combinations, pairwise
from typing import Any

import pytest

from planner.costs.memory import layer_mlp
from planner.costs.roofline import share_ns
from planner.costs.shares import DraftShares
from planner.errors import InputError
from planner.hardware.inventory import parse_inventory
from planner.problem import draft_block, stage_groups
from planner.problem.device_sets import Candidates
from planner.problem.formulate import Formulation
from planner.problem.kv_splits import allows
from planner.problem.machine import Module
from planner.solver.minimise import Settings
from planner.solver.problem import Group, Problem, Receive, Split
from planner.solver.solve import solve
from plans import slot_bytes
from plans.caches import kv_bytes
from plans.kv import KvShare, whole_heads
from plans.schema import KvAxis, LayerClass, Pin, Strategy
from tests.planner.instances import UNLIKE, Head, cpu, demo, formulation, host

BOXES: dict[str, Any] = {
    "hosts": [host(f"h{i}", *(cpu(f"h{i}{letter}", 16) for letter in "abc")) for i in range(2)],
    "network": {"class": "ethernet", "latency": "5 ms"},
}
"""Two equal hosts of three equal devices."""


def with_options(formulated: Formulation, **changes: Any) -> Formulation:
    return dataclasses.replace(formulated, options=dataclasses.replace(formulated.options, **changes))


def with_attention(formulated: Formulation, **changes: Any) -> Formulation:
    (layers,) = formulated.model.layers
    layers = dataclasses.replace(layers, attention=dataclasses.replace(layers.attention, **changes))
    return dataclasses.replace(formulated, model=dataclasses.replace(formulated.model, layers=(layers,)))


def with_mlp(formulated: Formulation, **changes: Any) -> Formulation:
    (layers,) = formulated.model.layers
    layers = dataclasses.replace(layers, mlp=dataclasses.replace(layers.mlp, **changes))
    return dataclasses.replace(formulated, model=dataclasses.replace(formulated.model, layers=(layers,)))


def with_head(formulated: Formulation, **attention: Any) -> Formulation:
    assert formulated.draft is not None
    draft = dataclasses.replace(
        formulated.draft, attention=dataclasses.replace(formulated.draft.attention, **attention)
    )
    return dataclasses.replace(formulated, draft=draft)


def axes(problem: Problem, formulated: Formulation) -> dict[tuple[str, ...], set[KvAxis]]:
    """Return the KV axes that are offered, by the names of the devices of a group."""
    offered: dict[tuple[str, ...], set[KvAxis]] = {}
    for group, division in zip(problem.groups, formulated.kv_divisions, strict=True):
        names = tuple(problem.devices[d] for d in group.devices)
        offered.setdefault(names, set()).add(division.axis)
    return offered


CASES: dict[str, Formulation] = {
    "unlike": formulation(UNLIKE, "eagle3"),
    "boxes": formulation(BOXES, "eagle1"),
    "batch": with_options(formulation(BOXES, None), batch=3),
    "narrow cache": with_options(formulation(BOXES, "eagle3"), kv_dtype="float8_e4m3fn"),
    "multi-query": with_attention(formulation(BOXES, None), num_kv_heads=1),
    "many heads": with_attention(formulation(UNLIKE, None), num_heads=32, num_kv_heads=32),
    "normed heads": with_attention(formulation(BOXES, None), qk_norm=True),
    "experts": with_mlp(
        formulation(UNLIKE, None), kind="moe", num_experts=4, experts_per_token=2, intermediate_size=128
    ),
    "context": with_options(formulation(BOXES, "eagle3"), kv_axis="context"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_listed_group_is_legal(case: str) -> None:
    formulated = CASES[case]
    problem = formulated.problem
    (layers,) = formulated.model.layers
    heads, pairs = layers.attention.num_kv_heads, layers.attention.head_dim // 2
    queries = layers.attention.num_heads // heads
    assert len(formulated.kv_divisions) == len(problem.groups)
    for group, division in zip(problem.groups, formulated.kv_divisions, strict=True):
        assert sum(division.subgroups) == len(group.devices)
        assert division.axis == "heads" or max(division.subgroups) > 1
        assert division.axis != "heads" or all(queries % m == 0 for m in division.subgroups)
        assert division.axis != "batch" or max(division.subgroups) <= formulated.options.batch
        assert division.axis != "head_dim" or all(pairs % m == 0 for m in division.subgroups)
        (splits,) = group.splits
        assert splits
        assert len({split.shares for split in splits}) == len(splits)
        for split in splits:
            starts = [sum(division.subgroups[:i]) for i in range(len(division.subgroups))]
            assert sum(split.shares[start] for start in starts) == heads
            for start, m in zip(starts, division.subgroups, strict=True):
                assert len(set(split.shares[start : start + m])) == 1
            assert min(split.shares) >= 1
            assert len(split.bytes) == len(split.shares) == len(group.devices)
    sites = {group.site: group.devices for group in problem.groups if group.site >= len(problem.hosts)}
    for group in problem.groups:
        hosts = {h for h, members in enumerate(problem.hosts) if set(members) & set(group.devices)}
        assert hosts == {group.site} or (len(hosts) > 1 and sites[group.site] == group.devices)


@pytest.mark.parametrize("case", CASES)
def test_splits_have_exact_bytes(case: str) -> None:
    formulated = CASES[case]
    (layers,) = formulated.model.layers
    dtype = formulated.options.dtype
    for group, division in zip(formulated.problem.groups, formulated.kv_divisions, strict=True):
        sites = [(m, part) for m in division.subgroups for part in range(m)]
        for split in group.splits[0]:
            for j, (heads, (m, part)) in enumerate(zip(split.shares, sites, strict=True)):
                share = KvShare(heads=heads, axis=division.axis, parts=m, part=part)
                exact = slot_bytes.attention_bytes(formulated.model, dtype, layers, share, j == 0)
                exact += layer_mlp(formulated.model, dtype, layers, j == 0).fixed
                assert split.bytes[j] == exact + kv_bytes(formulated.options, layers.attention, share)


def test_a_single_device_takes_the_time_of_its_memory_traffic() -> None:
    formulated = CASES["unlike"]
    (layers,) = formulated.model.layers
    alone = next(group for group in formulated.problem.groups if group.devices == (0,))
    ((split,),) = alone.splits
    device = formulated.machine.inventory.devices[0]
    share = whole_heads(layers.attention.num_kv_heads)
    traffic = slot_bytes.attention_bytes(formulated.model, "float32", layers, share, True) - 192 * 4
    cached = kv_bytes(formulated.options, layers.attention, share)
    assert split.ns >= device.overhead_ns + share_ns(device, traffic + cached, 0)


def rising(receive: Receive) -> bool:
    costs = (receive.same_ns, receive.inside_ns, receive.near_ns, receive.far_ns)
    return all(a <= b for a, b in pairwise(costs))


@pytest.mark.parametrize("case", CASES)
def test_receiving_costs_more_from_further_away(case: str) -> None:
    problem = CASES[case].problem
    for group in problem.groups:
        assert rising(group.first)
        assert 0 == group.first.same_ns < group.first.far_ns
        assert group.hop_ns <= group.network_hop_ns
    for block in problem.blocks:
        assert all(rising(option.receive) for option in block.options)
    assert all(option.receive.far_ns == 0 for option in problem.first.options)


@pytest.mark.parametrize("case", CASES)
def test_blocks_may_be_on_any_candidates(case: str) -> None:
    formulated = CASES[case]
    problem = formulated.problem
    sets = {device_set.devices for device_set in formulated.candidates.sets}
    for block in (problem.first, problem.last):
        assert {option.devices for option in block.options} == sets
        assert [axis.count * formulated.row_unit for axis in block.axes] == [formulated.model.vocab_size]
        for option in block.options:
            assert {h for h, members in enumerate(problem.hosts) if set(members) & set(option.devices)} == {
                *option.sites
            }
    if problem.tail is not None:
        assert {option.devices for option in problem.tail.options} == sets


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_drafter_has_every_legal_split(kv_heads: int) -> None:
    formulated = with_options(with_head(CASES["boxes"], num_heads=4, num_kv_heads=kv_heads, head_dim=48), batch=2)
    assert formulated.draft is not None
    tail, draft = formulated.problem.tail, formulated.draft
    assert tail is not None
    shares = DraftShares(model=formulated.model, draft=draft, options=formulated.options)
    offered = set()
    for option, divisions in zip(tail.options, formulated.draft_kv_divisions, strict=True):
        size = len(option.devices)
        assert len(set(zip(divisions, (split.shares for split in option.splits), strict=True))) == len(divisions)
        for split, division in zip(option.splits, divisions, strict=True):
            assert allows(draft.attention, formulated.options, division)
            sites = [(m, part) for m in division.subgroups for part in range(m)]
            parts = [
                KvShare(heads=heads, axis=division.axis, parts=m, part=part)
                for heads, (m, part) in zip(split.shares, sites, strict=True)
            ]
            assert sum(share.heads for share in parts if share.part == 0) == kv_heads
            kinds = [formulated.inventory.devices[device].kind == "cuda" for device in option.devices]
            assert split.bytes == tuple(
                shares.bytes(share, j == 0, size, gpu) for j, (share, gpu) in enumerate(zip(parts, kinds, strict=True))
            )
            offered.add((size, division.axis))
    most = len(formulated.problem.devices)
    assert {size for size, _ in offered} == {1, 2, 3, 4, most}
    assert {axis for size, axis in offered if size > kv_heads} >= {"context", "head_dim"}
    assert (4, "heads") in offered


def test_pruned_splits_of_the_drafter_are_dominated(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = with_options(with_head(CASES["boxes"], num_heads=4, num_kv_heads=2, head_dim=48), batch=2)
    tail = kept.problem.tail
    monkeypatch.setattr(draft_block, "no_worse", lambda one, other, more: False)
    every = dataclasses.replace(kept).problem.tail
    assert tail is not None
    assert every is not None
    assert sum(len(option.splits) for option in every.options) > sum(len(option.splits) for option in tail.options)
    for one, other in zip(tail.options, every.options, strict=True):
        for split in other.splits:
            assert any(
                mine.ns <= split.ns and all(a <= b for a, b in zip(mine.bytes, split.bytes, strict=True))
                for mine in one.splits
            )


def test_a_group_over_several_hosts_pays_for_the_network() -> None:
    formulated = CASES["boxes"]
    problem = formulated.problem
    names = [tuple(problem.devices[d] for d in group.devices) for group in problem.groups]
    near, far = (problem.groups[names.index(pair)] for pair in (("h0a", "h0b"), ("h0a", "h1a")))
    for split in near.splits[0]:
        if split.shares == far.splits[0][0].shares:
            assert split.ns < far.splits[0][0].ns
            assert split.bytes == far.splits[0][0].bytes
    assert far.site >= 2


@pytest.mark.parametrize("axis", ["heads", "context", "head_dim", "batch"])
def test_a_requested_kv_axis_is_the_only_one_offered(axis: KvAxis) -> None:
    formulated = with_options(CASES["boxes"], kv_axis=axis, batch=2)
    offered = axes(formulated.problem, formulated)
    assert all(device_set == ({"heads"} if len(names) == 1 else {axis}) for names, device_set in offered.items())
    assert any(len(names) > 1 for names in offered)
    assert sum(len(names) == 1 for names in offered) == 6


def test_more_devices_than_kv_heads_share_them() -> None:
    formulated = CASES["multi-query"]
    offered = axes(formulated.problem, formulated)
    everyone = tuple(sorted(formulated.problem.devices))
    assert offered[everyone] == {"context", "head_dim"} or offered[everyone] == {"context"}
    queries = formulated.model.layers[0].attention.num_heads
    assert all(("heads" in device_set) == (queries % len(names) == 0) for names, device_set in offered.items())
    assert {len(names) for names, device_set in offered.items() if "heads" in device_set} > {1, 2}


def test_a_kv_axis_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(InputError, match="--kv batch: there is 1 sequence"):
        _ = with_options(CASES["boxes"], kv_axis="batch").problem
    with pytest.raises(InputError, match=r"--kv head_dim: .*qk_norm"):
        _ = with_options(CASES["normed heads"], kv_axis="head_dim").problem
    assert "head_dim" not in {division.axis for division in CASES["normed heads"].kv_divisions}


def test_pruned_groups_are_dominated(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = CASES["batch"]
    monkeypatch.setattr(stage_groups, "dominates", lambda one, other: False)
    every = dataclasses.replace(kept)
    assert len(every.problem.groups) > len(kept.problem.groups)
    offered = list(zip(kept.problem.groups, kept.kv_divisions, strict=True))
    for group, division in zip(every.problem.groups, every.kv_divisions, strict=True):
        same = [other for other, _ in offered if other.devices == group.devices]
        if any(other.devices == group.devices and theirs == division for other, theirs in offered):
            continue
        assert any(all(_has_as_good(other, group, split) for split in group.splits[0]) for other in same)


def _has_as_good(one: Group, other: Group, split: Split) -> bool:
    """Return whether a split of ``one`` takes no more time nor, for 1 and 9 layers of a stage, more memory."""
    return any(
        mine.ns <= split.ns
        and all(
            a + n * mine.bytes[j] <= b + n * split.bytes[j]
            for j, (a, b) in enumerate(zip(one.stage_bytes, other.stage_bytes, strict=True))
            for n in (1, 9)
        )
        for mine in one.splits[0]
    )


@pytest.mark.parametrize("mib", [12, 14])
def test_pruning_groups_does_not_change_the_objective(mib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"hosts": [host("box", *(cpu(f"c{i}", mib) for i in range(2)))]}
    kept = with_options(formulation(data, None), batch=2)
    least = solve(kept.problem, Settings())
    monkeypatch.setattr(stage_groups, "dominates", lambda one, other: False)
    every = dataclasses.replace(kept)
    assert len(every.problem.groups) > len(kept.problem.groups)
    other = solve(every.problem, Settings())
    assert (least and least.objective_ns) == (other and other.objective_ns)


def test_a_table_larger_than_any_device_can_be_divided() -> None:
    formulated = formulation({"hosts": [host("box", *(cpu(f"c{i}", 24) for i in range(5)))]}, None)
    model = dataclasses.replace(formulated.model, vocab_size=64 * 600)
    formulated = dataclasses.replace(formulated, model=model)
    problem = formulated.problem
    for block in (problem.first, problem.last):
        (axis,) = block.axes
        assert axis.count * axis.each_bytes > max(problem.capacity_bytes)
        assert axis.each_bytes * 2 < min(problem.capacity_bytes)
    solved = solve(problem, Settings())
    assert solved is not None
    assert len(problem.first.options[solved.answer.first.option].devices) > 1


@pytest.mark.parametrize("head", ["eagle3", "eagle1"])
def test_the_drafter_may_share_the_tables_of_the_base(head: Head) -> None:
    tail = formulation(UNLIKE, head).problem.tail
    assert tail is not None
    assert [axis.shared for axis in tail.axes] == [None, "first", "last" if head == "eagle1" else None]
    formulated = formulation(UNLIKE, head)
    assert formulated.draft is not None
    own = dataclasses.replace(formulated, draft=dataclasses.replace(formulated.draft, own_embedding=True)).problem.tail
    assert own is not None
    assert own.axes[1].shared is None


def test_rows_come_in_bundles_that_divide_both_vocabularies() -> None:
    formulated = formulation(UNLIKE, "eagle3")
    assert formulated.row_unit == 64
    odd = dataclasses.replace(formulated, model=dataclasses.replace(formulated.model, vocab_size=2047))
    assert odd.row_unit == 1
    assert odd.problem.first.axes[0].count == 2047


class _UnmergedFormulation(Formulation):
    """A formulation whose candidates are all subsets, also of equal devices."""

    @property
    def candidates(self) -> Candidates:  # type: ignore[override]
        return _EverySubset(machine=self.machine)


class _EverySubset(Candidates):
    def _inside(self, module: Module) -> list[tuple[int, ...]]:
        sizes = range(1, len(module.devices) + 1)
        return [members for size in sizes for members in combinations(module.devices, size)]


@pytest.mark.parametrize("mib", [12, 13, 16, 24])
def test_merging_equal_devices_does_not_change_the_objective(mib: int) -> None:
    data = {"hosts": [host("box", *(cpu(f"c{i}", mib) for i in range(3)))]}
    merged = formulation(data, "eagle3")
    fields = {field.name: getattr(merged, field.name) for field in dataclasses.fields(merged)}
    unmerged = _UnmergedFormulation(**fields)
    assert len(unmerged.problem.first.options) == len(merged.problem.first.options) + 1
    answers = [solve(formulated.problem, Settings(workers=1)) for formulated in (merged, unmerged)]
    objectives = [answer and answer.objective_ns for answer in answers]
    assert objectives[0] == objectives[1] is not None


def test_devices_that_are_not_used_do_not_make_a_step_longer() -> None:

    def step_ns(idle: int) -> int:
        machine = {"hosts": [host("box", cpu("a", 24), cpu("b", 24), *(cpu(f"z{n}", 24) for n in range(idle)))]}
        solved = solve(with_options(formulation(machine, "eagle1"), max_devices=2).problem, Settings())
        assert solved is not None
        return solved.objective_ns

    assert step_ns(0) == step_ns(1) == step_ns(3)


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


def test_each_layer_kind_has_its_own_splits() -> None:
    formulated = formulation(UNLIKE, None)
    (layers,) = formulated.model.layers
    heads = dataclasses.replace(layers.attention, num_kv_heads=2)
    other = dataclasses.replace(layers, attention=heads, num_layers=2)
    wide = dataclasses.replace(layers, mlp=dataclasses.replace(layers.mlp, intermediate_size=1024), num_layers=1)
    model = dataclasses.replace(formulated.model, layers=(layers, other, wide, layers))
    formulated = dataclasses.replace(formulated, model=model)
    problem = formulated.problem
    count = layers.num_layers
    assert problem.sequence == ((0, count), (1, 2), (2, 1), (0, count))
    assert problem.layers == 2 * count + 3
    assert problem.kinds[2].units * layers.mlp.unit == 1024
    for group in problem.groups:
        for kind, total in ((0, 4), (1, 2), (2, 4)):
            for split in group.splits[kind]:
                assert sum(split.shares) >= total
    assert any(group.splits[0] and not group.splits[1] for group in problem.groups) == (
        max(len(group.devices) for group in problem.groups) > 2
    )


def test_a_unit_of_an_moe_layer_is_a_slice_of_every_expert() -> None:
    formulated = CASES["experts"]
    (kind,) = formulated.problem.kinds
    (layers,) = formulated.model.layers
    assert kind.unit_bytes == 4 * 3 * 192 * layers.mlp.unit * 4
    plain = with_mlp(formulated, kind="gated", num_experts=1, experts_per_token=1).problem
    one, other = (problem.groups[0].splits[0][0] for problem in (formulated.problem, plain))
    assert one.bytes[0] == other.bytes[0] + 4 * 192 * 4, "the router"
    assert one.ns > other.ns
    assert all(2 * b <= a <= 4 * b for a, b in zip(kind.unit_ps, plain.kinds[0].unit_ps, strict=True))


STRATEGIES: dict[Strategy, tuple[str, int | None, bool]] = {
    "latency": ("time", None, False),
    "balanced": ("balance", None, False),
    "balanced_low_0": ("balance", 1, False),
    "sequential": ("fill", None, True),
}
MIXED = {
    "hosts": [
        host("box", cpu("cpu", 64), *({"id": f"gpu{i}", "type": "l4"} for i in range(2)), links={"class": "pcie"})
    ]
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_is_a_goal(strategy: Strategy) -> None:
    problem = with_options(formulation(MIXED, "eagle3"), strategy=strategy).problem
    goal, spare, ordered = STRATEGIES[strategy]
    assert (problem.goal, problem.spare, problem.ordered) == (goal, spare, ordered)
    listed = strategy in ("balanced_low_0", "sequential", "custom")
    assert problem.devices == (("cpu", "gpu0", "gpu1") if listed else ("gpu0", "gpu1", "cpu"))
    assert problem.counts is None
    if strategy == "sequential":
        assert [group.devices for group in problem.groups] == [(1,), (2,), (0,)]
        assert {len(option.devices) for block in problem.blocks for option in block.options} == {1}


def mapped(**devices: str) -> tuple[Pin, ...]:
    """Return a device map from the devices of ``embed``, ``head``, ``draft`` and of runs of layers, ``lFROM_TO``."""
    pins = {}
    for name, device in devices.items():
        if name[0] == "l":
            start, stop = map(int, name[1:].split("_"))
            pins |= {f"layers.{i}": device for i in range(start, stop)}
        else:
            pins[name] = device
    return tuple(Pin(module=module, device=device) for module, device in sorted(pins.items()))


def test_a_device_map_determines_the_placement() -> None:
    pins = mapped(embed="gpu1", l0_3="gpu0", l3_7="cpu", l7_8="gpu1", head="gpu0", draft="gpu1")
    formulated = with_options(formulation(MIXED, "eagle3"), strategy="custom", custom=pins)
    problem = formulated.problem
    assert [(group.devices, len(group.splits[0])) for group in problem.groups] == [((1,), 1), ((0,), 1), ((2,), 1)]
    assert (problem.counts, problem.ordered, problem.goal) == ((3, 4, 1), True, "time")
    assert [[option.devices for option in block.options] for block in problem.blocks] == [[(2,)], [(1,)], [(2,)]]
    solved = solve(problem, Settings())
    assert solved is not None
    assert [(stage.group, stage.num_layers) for stage in solved.answer.stages] == [(0, 3), (1, 4), (2, 1)]


def test_a_drafter_missing_from_the_device_map_is_left_to_the_solver() -> None:
    pins = mapped(embed="gpu0", l0_8="gpu0", head="gpu0")
    tail = with_options(formulation(MIXED, "eagle3"), strategy="custom", custom=pins).problem.tail
    assert tail is not None
    assert len(tail.options) > 1


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        (mapped(embed="gpu0", l0_8="gpu0"), "device map: head is on no device"),
        (mapped(embed="gpu0", l0_7="gpu0", head="gpu0"), "device map: layers.7 is on no device"),
        (mapped(embed="gpu0", l0_9="gpu0", head="gpu0"), "device map: layers.8: expected embed, layers.0 to layers.7"),
        (mapped(embed="gpu9", l0_8="gpu0", head="gpu0"), "device map: embed: found gpu9, expected one of cpu, gpu0"),
        (
            mapped(embed="gpu0", l0_3="gpu0", l3_5="gpu1", l5_8="gpu0", head="gpu0"),
            r"device map: layers.5 is on gpu0, which has layers.0 to layers.2 and not layers.4",
        ),
    ],
)
def test_a_device_map_that_is_no_chain_is_refused(pins: tuple[Pin, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _ = with_options(formulation(MIXED, None), strategy="custom", custom=pins).problem


def test_a_device_map_that_returns_to_a_host_is_refused() -> None:
    pins = mapped(embed="h0a", l0_3="h0a", l3_5="h1a", l5_8="h0b", head="h0a")
    with pytest.raises(InputError, match=r"layers.5 is on host h0, which was left before layers.3"):
        _ = with_options(formulation(BOXES, None), strategy="custom", custom=pins).problem


def test_the_listing_order_changes_nothing() -> None:
    backwards = {"hosts": [h | {"devices": h["devices"][::-1]} for h in UNLIKE["hosts"][::-1]]}
    data = UNLIKE | backwards
    assert parse_inventory(data, "x") == parse_inventory(UNLIKE, "x")
    assert formulation(data, "eagle3").problem == formulation(UNLIKE, "eagle3").problem
