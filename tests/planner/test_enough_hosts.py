"""Answers on a few of many equal hosts against those on all of them, and how few are searched."""

import dataclasses
import json
import random
from functools import cache
from typing import Any, Literal

import pytest

from planner import enough_hosts
from planner.emit import emit
from planner.enough_hosts import (
    EASY_SETS,
    fits_on_enough,
    infeasible_on_all,
    on_hosts,
    settle_on_enough,
    short_bytes,
    solve_on_enough,
    takes_longer_on_all,
)
from planner.errors import NotProvenError
from planner.families import inputs_of
from planner.problem.formulate import Formulation
from planner.solver import limits
from planner.solver.bounds.in_use import divided_ns
from planner.solver.bounds.step import lower_bounds
from planner.solver.certify import devices_in_use
from planner.solver.minimise import Settings
from planner.solver.solve import Solved, least_step, solve
from plans.schema import MeasuredRates, Plan, ProductRates, ScoreTime
from tests.planner.instances import cpu, demo, formulation, gpu, host

SEEDS = range(24)
CLASSES = range(24, 32)
"""Machines of several classes of equal hosts."""


@pytest.fixture(autouse=True)
def no_easy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search few hosts of these small machines too, wherever some can be left out."""
    monkeypatch.setattr(enough_hosts, "EASY_SETS", 0)


def machine(hosts: int, devices: int, kib: int, rates: dict[str, str], network: dict[str, str]) -> Any:
    """Return equal hosts of equal devices; ids and hosts are named in order."""
    listed = [
        host(f"h{h:03}", *(gpu(f"h{h:03}g{d}", kib, **rates) for d in range(devices)), links={"class": "pcie"})
        for h in range(hosts)
    ]
    return {"hosts": listed, "network": {"class": "ethernet"} | network}


def of_classes(seed: int) -> Formulation:
    """Return the demo on two to four classes of up to 3 equal hosts of one device, where two hosts may be faster."""
    rng = random.Random(seed)
    figures = {"flops": "1 TFLOP/s", "overhead": "5 us"}
    listed = [
        host(f"{name}{h}", gpu(f"{name}{h}g", 40_000, bandwidth=rate, **figures), links={"class": "pcie"})
        for name, rate in list(zip("abcd", ("2 GB/s", "1.8 GB/s", "1.7 GB/s", "1.6 GB/s"), strict=True))[: 2 + seed % 3]
        for h in range(3)
    ]
    latency = {"latency": f"{rng.choice((60, 100, 130, 140, 150))} us", "bandwidth": "100 Gbit/s"}
    whole = formulation({"hosts": listed, "network": {"class": "ethernet"} | latency}, None)
    return dataclasses.replace(whole, options=dataclasses.replace(whole.options, simplify_ppm=(0, 5_000)[seed % 2]))


def drawn(seed: int) -> Formulation:
    """Return the demo on 4 or 5 equal hosts of one or two devices, of which it needs one to three; or on classes."""
    if seed in CLASSES:
        return of_classes(seed)
    rng = random.Random(seed)
    kib = (12_000, 20_000, 40_000)[seed % 3]
    data = machine(
        rng.randint(4, 5),
        1 + seed // 3 % 2,
        kib,
        {"bandwidth": f"{rng.choice((2, 5))} GB/s", "flops": "1 TFLOP/s", "overhead": f"{rng.choice((5, 20))} us"},
        {"latency": f"{rng.choice((100, 200, 400))} us", "bandwidth": f"{rng.choice((10, 100))} Gbit/s"},
    )
    whole = formulation(data, "eagle3" if kib > 12_000 and rng.random() < 0.4 else None)
    simplify_ppm = (5_000, 100_000, 300_000, 0)[seed % 4]
    return dataclasses.replace(whole, options=dataclasses.replace(whole.options, simplify_ppm=simplify_ppm))


def solve_on(part: Formulation, known_ns: int | None) -> Solved | None:
    return solve(part.problem, Settings(known_ns=known_ns))


@cache
def on_enough(seed: int) -> tuple[Formulation, Solved | None]:
    return solve_on_enough(drawn(seed), solve_on)


@cache
def on_all(seed: int) -> Solved | None:
    return solve(drawn(seed).problem, Settings())


def renamed(plan: Plan) -> Any:
    """Return the placement with devices numbered in the order in which it names them."""
    text = json.dumps([dataclasses.asdict(part) for part in (*plan.stages, plan.embed, plan.head)])
    if plan.draft_placement is not None:
        text += json.dumps(dataclasses.asdict(plan.draft_placement))
    ids = sorted((device.id for device in plan.inventory.devices), key=lambda name: (text.find(f'"{name}"'), name))
    for number, name in enumerate(ids):
        text = text.replace(f'"{name}"', f'"#{number}"')
    return text


@pytest.mark.parametrize("seed", [*SEEDS, *CLASSES])
def test_the_answer_is_the_one_on_all_hosts(seed: int) -> None:
    whole, expected = drawn(seed), on_all(seed)
    few, solved = on_enough(seed)
    assert (solved is None) == (expected is None)
    assert fits_on_enough(whole, Settings()) == (expected is not None)
    if solved is not None and expected is not None:
        assert solved.objective_ns == expected.objective_ns
        base, draft = demo("eagle3")
        inputs = inputs_of(base, draft if whole.draft else None)
        assert renamed(emit(few, inputs, solved)) == renamed(emit(whole, inputs, expected))


@pytest.mark.parametrize("seed", [*SEEDS, *CLASSES])
def test_the_least_step_alone_is_that_of_the_answer(seed: int) -> None:
    whole, expected = drawn(seed), on_all(seed)
    few, step = solve_on_enough(whole, lambda part, known: least_step(part.problem, Settings(known_ns=known)))
    assert (step is None) == (expected is None)
    if step is None or expected is None:
        assert takes_longer_on_all(whole, 10**9, Settings())
        return
    assert step.least_ns == step.bound_ns == expected.least_ns
    assert takes_longer_on_all(whole, expected.least_ns - 1, Settings())
    assert not takes_longer_on_all(whole, expected.least_ns, Settings())
    settled = settle_on_enough(whole, few, step)
    assert settled is None or settled.objective_ns == expected.objective_ns
    assert settled is not None or few is not whole


@pytest.mark.parametrize("seed", SEEDS)
def test_bounds_that_take_groups_over_several_hosts_one_by_one_exclude_no_answer(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = on_all(seed)
    if expected is None:
        return
    monkeypatch.setattr(limits, "MOST_WIDE_SETS", 0)
    bounds = lower_bounds(drawn(seed).problem)
    assert bounds is not None
    assert bounds.least <= expected.least_ns
    assert {stage.group for stage in expected.answer.stages} <= set(bounds.within(expected.objective_ns).groups)


def test_some_of_these_machines_are_searched_on_few_hosts_and_some_use_several() -> None:
    fewer = [part for part in map(on_enough, SEEDS) if len(part[0].searched.hosts) < len(part[0].inventory.hosts)]
    assert len(fewer) >= 8
    assert sum(solved is not None and len(_used_hosts(few, solved)) > 1 for few, solved in fewer) >= 2


def _used_hosts(few: Formulation, solved: Solved) -> set[int]:
    return {few.problem.host_of[device] for device in devices_in_use(few.problem, solved.answer)}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_group_or_option_over_more_hosts_costs_less_than_its_bound(seed: int) -> None:
    _bound_wider(drawn(seed))


@pytest.mark.parametrize("score_ns", [1, 100, 100_000])
@pytest.mark.parametrize("head", [None, "eagle3"])
def test_nor_do_those_of_cpus_whose_attention_was_measured(score_ns: int, head: Literal["eagle3"] | None) -> None:
    """Attention may be faster than products are, of those of all CPUs or of some."""
    listed = [host(f"h{h}", cpu(f"h{h}c0", 40), cpu(f"h{h}c1", 40)) for h in range(4)]
    whole = formulation({"hosts": listed, "network": {"class": "ethernet"}}, head, context=512)
    for positions in range(8), range(0, 8, 2):
        devices = list(whole.inventory.devices)
        for position in positions:
            own = devices[position]
            flops_per_s = own.flops_per_s // 50
            rates = ProductRates(bandwidth_bytes_per_s=own.bandwidth_bytes_per_s, flops_per_s=flops_per_s)
            scores = (ScoreTime(head_dim=16, ns=score_ns), ScoreTime(head_dim=64, ns=2 * score_ns))
            measured = MeasuredRates(products=(rates,), row_ns=0, tree_ns=0, scores=scores)
            devices[position] = dataclasses.replace(own, flops_per_s=flops_per_s, measured=measured)
        inventory = dataclasses.replace(whole.inventory, devices=tuple(devices))
        _bound_wider(dataclasses.replace(whole, inventory=inventory))


def _bound_wider(whole: Formulation) -> None:
    """Assert that all groups and options over several hosts cost no less than some bound."""
    few = on_hosts(whole, 1)
    bounds = few.wider_groups
    problem = whole.problem
    for group in problem.groups:
        hosts = len({problem.host_of[device] for device in group.devices})
        if hosts > 1:
            (kind,), (splits,) = problem.kinds, group.splits
            ns = min(split.ns for split in splits) + divided_ns(kind.units, [kind.unit_ps[d] for d in group.devices])
            assert any(
                bound.most_hosts >= hosts
                and bound.least_devices <= len(group.devices)
                and bound.layer_ns[0] <= ns + 1e-6
                and bound.network_hop_ns <= group.network_hop_ns
                and bound.first.inside_ns <= group.first.inside_ns
                for bound in bounds
            )
    for b, block in enumerate(problem.blocks):
        for option in block.options:
            if len(option.sites) > 1:
                ns = min(split.ns for split in option.splits)
                ns += sum(divided_ns(a.count, [a.each_ps[d] for d in option.devices]) for a in block.axes)
                assert any(
                    bound.most_hosts >= len(option.sites)
                    and bound.least_devices <= len(option.devices)
                    and bound.blocks[b][0] <= ns + 1e-6
                    and bound.blocks[b][1].inside_ns <= option.receive.inside_ns
                    for bound in bounds
                )


@pytest.mark.parametrize("seed", SEEDS)
def test_prices_that_are_kept_from_fewer_hosts_are_those_of_the_machine(seed: int) -> None:
    whole = drawn(seed)
    for hosts in (1, 2):
        few = on_hosts(whole, hosts)
        alone = dataclasses.replace(whole, most_hosts=few.most_hosts)
        assert few.problem == alone.problem
        assert few.kv_divisions == alone.kv_divisions
        assert few.in_use == alone.in_use
        assert [few.in_use.least_ns(n) for n in (1, 3)] == [few.in_use.least_ns(n, 10**6) for n in (1, 3)]


LARGE = machine(125, 8, 400_000, {}, {"latency": "15 us", "bandwidth": "100 Gbit/s"})


def test_of_a_thousand_equal_devices_few_are_searched() -> None:
    few, solved = solve_on_enough(formulation(LARGE, "eagle3"), solve_on)
    assert solved is not None
    assert len(few.inventory.hosts) == 125
    assert len(few.searched.hosts) <= 4
    assert solved.simplicity is not None
    assert solved.simplicity.devices == len(devices_in_use(few.problem, solved.answer))


def test_a_model_that_takes_more_than_a_thousand_devices_have_is_refused_without_listing_their_groups() -> None:
    whole = formulation(machine(125, 8, 3, {}, {}), None)
    short = short_bytes(whole)
    error = infeasible_on_all(whole, Settings())
    assert short > 0
    assert error.least_bytes == short
    assert str(error).startswith("no placement fits: at least ")
    assert not fits_on_enough(whole, Settings())


def test_a_limit_on_few_hosts_is_a_refusal_where_more_hosts_are_no_better() -> None:
    def refused(part: Formulation, known_ns: int | None) -> Solved | None:
        solved = solve(part.problem, Settings())
        assert solved is not None
        raise NotProvenError("limit", objective_ns=solved.objective_ns, bound_ns=solved.bound_ns)

    with pytest.raises(NotProvenError):
        solve_on_enough(formulation(LARGE, None), refused)


def test_other_strategies_are_solved_on_all_hosts() -> None:
    whole = formulation(machine(4, 1, 20000, {}, {}), None)
    balanced = dataclasses.replace(whole, options=dataclasses.replace(whole.options, strategy="balanced"))
    assert on_hosts(balanced, 1) is balanced
    assert on_hosts(whole, 1) is not whole
    assert on_hosts(whole, 4) is whole


def test_a_machine_of_few_candidates_is_searched_at_once_unless_most_of_it_can_be_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(enough_hosts, "EASY_SETS", EASY_SETS)
    for hosts in (2, 3, 5):
        few = formulation(machine(hosts, 2, 40_000, {}, {}), None)
        searched = {most: len(on_hosts(few, most).searched.hosts) for most in range(1, hosts + 1)}
        assert searched == {most: most if 2 * most < hosts else hosts for most in searched}
