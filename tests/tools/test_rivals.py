"""Placements of vLLM and accelerate: their rules, and that ours is never slower and fits wherever theirs do."""

import dataclasses

import pytest

from bench_planner import beaten
from instances import GB_50, GB_80, RIVALRIES, Rivalry, one
from planner.problem.device_map import read
from planner.problem.formulate import Formulation
from planner.solver.minimise import Settings
from planner.solver.solve import solve
from rivals import (
    allowed_sizes,
    balanced_map,
    best_equal_share,
    compare,
    copy_ns,
    equal_layers,
    equal_shares,
    formulation_of,
    largest_host,
    mapped,
    repeat_heads,
)

BY_NAME = {rivalry.name: rivalry for rivalry in RIVALRIES}


@pytest.mark.parametrize(
    ("layers", "stages", "counts"),
    [
        (3, 2, (2, 1)),
        (4, 3, (1, 2, 1)),
        (5, 3, (2, 2, 1)),
        (80, 3, (27, 27, 26)),
        (80, 6, (13, 13, 13, 14, 14, 13)),
        (126, 16, (7, *(8,) * 14, 7)),
    ],
)
def test_remainder_layers_are_on_the_last_stages_but_one(layers: int, stages: int, counts: tuple[int, ...]) -> None:
    assert equal_layers(layers, stages) == counts


def test_tensor_parallel_sizes_divide_query_heads_and_keep_kv_heads_whole() -> None:
    qwen = formulation_of(BY_NAME["3x24"]).model
    assert (qwen.layers[0].attention.num_heads, qwen.layers[0].attention.num_kv_heads) == (40, 8)
    assert allowed_sizes(qwen, 16) == [1, 2, 4, 8]
    yi = formulation_of(BY_NAME["few-heads"]).model
    assert allowed_sizes(yi, 16) == [1, 2, 4, 8, 16]
    assert repeat_heads(yi, 4) == yi
    assert repeat_heads(yi, 8).layers[0].attention.num_kv_heads == 8


def test_a_pipeline_takes_the_time_of_reading_all_weights() -> None:
    """Three equal cards in sequence at 80 % of 936 GB/s, 2.4 us per kernel, two hops of 20 us, 0.1 ms of the host."""
    rivalry = BY_NAME["3x24"]
    (pipeline,) = [priced for priced in equal_shares(formulation_of(rivalry)) if priced.name == "TP 1 x PP 3"]
    _, sizes = balanced_map(rivalry.model, formulation_of(rivalry).inventory)
    cached = 2 * 64 * rivalry.context * 8 * 128 * 2
    read_bytes = sizes[""] - sizes["model.embed_tokens"] + cached
    expected_ns = read_bytes / (0.8 * 936) + (64 * 10 + 3 + 26) * 2_400 + 2 * 20_000 + 100_000
    assert pipeline.short_bytes == 0
    assert pipeline.step_ns == pytest.approx(expected_ns, rel=2e-3)


def test_instances_have_the_size_that_they_are_named_after() -> None:
    for model, nbytes in ((GB_50, 50e9), (GB_80, 80e9)):
        inventory = formulation_of(BY_NAME["24-24-12"]).inventory
        assert balanced_map(model, inventory)[1][""] == pytest.approx(nbytes, rel=0.01)


def test_the_balanced_map_depends_on_the_order_of_cards() -> None:
    """The weights spill in one order of the same cards and fit in another."""
    spills = {name: mapped(formulation_of(BY_NAME[name]), GB_50) for name in ("24-24-12", "12-24-24")}
    assert spills["24-24-12"].spilled_bytes > 4e9
    assert spills["24-24-12"].spilled_from == "model.layers.47"
    assert spills["12-24-24"].spilled_bytes == 0


def test_a_map_of_one_device_names_no_module() -> None:
    small = Rivalry(name="small", title="", model=GB_50, dtype="bfloat16", inventory=one("pcie", "h100-80g"))
    balanced = mapped(formulation_of(small), GB_50)
    assert (balanced.spilled_bytes, balanced.priced.short_bytes) == (0, 0)
    assert balanced.priced.step_ns == best_equal_share(formulation_of(small)).step_ns


def test_a_map_that_fits_is_priced_as_our_strategy_custom() -> None:
    rivalry = BY_NAME["12-24-24"]
    formulation = formulation_of(rivalry)
    balanced, _ = balanced_map(rivalry.model, formulation.inventory)
    lines = balanced | {"model.norm": balanced["lm_head"]}
    pins = read(lines, "map", formulation.model, None, formulation.inventory.devices)
    options = dataclasses.replace(formulation.options, strategy="custom", custom=pins)
    custom = Formulation(model=formulation.model, draft=None, options=options, inventory=formulation.inventory)
    solved = solve(custom.problem, Settings())
    assert solved is not None
    assert solved.objective_ns == mapped(formulation, rivalry.model).priced.step_ns


def test_our_plan_on_equal_cards_is_nearly_that_of_equal_shares() -> None:
    """If equal shares are best, our plan is shorter only by finer rounding of vocabulary rows."""
    formulation = formulation_of(BY_NAME["a100x4"])
    best = best_equal_share(formulation)
    solved = solve(formulation.problem, Settings())
    assert best.name == "TP 4 x PP 1"
    assert solved is not None
    assert solved.objective_ns <= best.step_ns <= 1.002 * solved.objective_ns


def test_spilled_weights_are_copied_in_every_step() -> None:
    assert copy_ns(22 * 10**9) == 10**9


def test_a_balanced_map_is_made_for_the_largest_host() -> None:
    assert largest_host(formulation_of(BY_NAME["hexgen"]).inventory) == (0, 1, 2, 3)


@pytest.mark.parametrize("rivalry", RIVALRIES, ids=list(BY_NAME))
def test_no_rival_is_faster_or_fits_where_ours_does_not(rivalry: Rivalry) -> None:
    assert beaten(compare(rivalry, limit=2)) == []


def test_a_faster_rival_is_reported() -> None:
    small = Rivalry(name="small", title="", model=GB_50, dtype="bfloat16", inventory=one("pcie", "3 x rtx-3090"))
    row = compare(small)
    assert row.ours is not None
    assert beaten(row) == []
    slower = dataclasses.replace(row, ours=dataclasses.replace(row.ours, objective_ns=10**12))
    assert beaten(slower) == ["equal shares", "accelerate"]
    assert beaten(dataclasses.replace(row, ours=None)) == ["equal shares", "accelerate"]
