"""Checks of a plan: a sound plan has no violations; each violation has path, found and expected value."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plans.check import InvalidPlanError, check, require
from plans.schema import Plan
from tests.plans.violations import violations_of
from tests.sample_plans import MIB, edited, nvlink_plan, one_device_plan, spread_plan, two_stage_plan


@pytest.mark.parametrize("make", [two_stage_plan, one_device_plan, nvlink_plan, spread_plan])
def test_sound_plans_have_no_violations(make: Any) -> None:
    assert check(make()) == ()
    require(make(), "plan.yaml")


PLAN = two_stage_plan()
KV = PLAN.memory[0].kv_bytes
OVERFULL = PLAN.memory[1].planned_bytes - PLAN.memory[1].weights_bytes + 11 * MIB


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stages[1].first_layer", 4, "stages[1].first_layer: found 4, expected 5, where the stage before ends"),
        ("stages[0].devices[1]", "gpu9", "stages[0].devices[1]: found gpu9, expected a device of the inventory"),
        (
            "stages[0].devices[1]",
            "cpu0",
            "stages[0].devices[1]: found cpu0, expected another device: the group has this one already",
        ),
        (
            "stages[1].devices[0]",
            "cpu0",
            "stages[1].devices[0]: found cpu0, expected another device: stages[0] has this one",
        ),
        ("stages[1].runs[0].num_layers", 4, "stages: found 9 layers, expected the model's 8"),
        (
            "stages[0].runs[0].kv_heads",
            [4, 0],
            "stages[0].runs[0].kv_heads: found [4, 0], expected 2 shares of 4 KV heads, each at least 1",
        ),
        (
            "stages[0].runs[1].mlp_units",
            [33, 16],
            "stages[0].runs[1].mlp_units: found [33, 16], expected 2 shares of 48 MLP units",
        ),
        ("embed.rows", [1024], "embed.rows: found [1024], expected 2 shares of 1024 rows"),
        ("head.rows", [1000], "head.rows: found [1000], expected 1 shares of 1024 rows"),
        (
            "draft_placement.head_rows",
            [1024],
            "draft_placement.head_rows: found [1024], expected 1 shares of 512 rows",
        ),
        (
            "draft_placement.head_rows",
            None,
            "draft_placement.head_rows: found nothing, expected shares, as the drafter has its own lm_head",
        ),
        (
            "draft_placement.embed_rows",
            None,
            "draft_placement.embed_rows: found nothing, expected shares, as the base's are on [cpu0, cpu1]",
        ),
        ("stages[0].transport", "nccl", "stages[0].transport: found nccl, expected shm between [cpu0, cpu1]"),
        (
            "stages[1].hop_transport",
            "local",
            "stages[1].hop_transport: found local, expected gloo between [cpu0, cpu2]",
        ),
        (
            "stages[0].hop_transport",
            "gloo",
            "stages[0].hop_transport: found gloo, expected local: nothing is sent to the same devices, [cpu0, cpu1]",
        ),
        ("message_transport", "local", "message_transport: found local, expected gloo between [cpu0, cpu1, cpu2]"),
        ("memory[0].kv_bytes", 7, f"memory[0].kv_bytes: found 7, expected {KV}, as its buffers take"),
        (
            "memory[0].draft_weights_bytes",
            9,
            "memory[0].draft_weights_bytes: found 9, expected 0 for the part that cpu0 has",
        ),
        (
            "memory[1].weights_bytes",
            0,
            "memory[1].weights_bytes: found 0, expected more than 0 for the part that cpu1 has",
        ),
        (
            "memory[1].weights_bytes",
            11 * MIB,
            f"memory[1]: found {OVERFULL} bytes planned, expected at most 11534336: memory less reserve",
        ),
        (
            "memory[2].device",
            "zzz",
            "memory: found [cpu0, cpu1, zzz], expected the devices in use, [cpu0, cpu1, cpu2]",
        ),
        (
            "memory[2].device",
            "cpu3",
            "memory: found [cpu0, cpu1, cpu3], expected the devices in use, [cpu0, cpu1, cpu2]",
        ),
    ],
)
def test_each_violation_of_a_placement_is_reported(path: str, value: Any, message: str) -> None:
    assert message in violations_of(edited(two_stage_plan(), path, value))


def test_a_plan_of_a_float8_cache_without_scales_is_refused() -> None:
    """As plans of schema 4.5 were counted at first; the version is the same."""
    plan = spread_plan()
    assert plan.options.kv_dtype == "float8_e4m3fn"
    dims = plan.model.layers[0].attention.head_dim
    index, now = next((index, line.kv_bytes) for index, line in enumerate(plan.memory) if line.kv_bytes)
    before = now // (dims + 4) * dims
    message = f"memory[{index}].kv_bytes: found {before}, expected {now}, as its buffers take"
    assert message in violations_of(edited(plan, f"memory[{index}].kv_bytes", before))


def test_many_violations_take_a_short_message_and_little_time() -> None:
    names = tuple(f"x{number}" for number in range(100_000))
    plan = replace(one_device_plan(), embed=replace(one_device_plan().embed, devices=names))
    with pytest.raises(InvalidPlanError) as caught:
        require(plan, "plan.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 52
    assert lines[-1].endswith(" more")
    assert max(map(len, lines)) < 300


def test_all_violations_are_in_one_error() -> None:
    plan = edited(edited(two_stage_plan(), "options.batch", 0), "embed.rows", [1, 2])
    with pytest.raises(InvalidPlanError) as caught:
        require(plan, "p/plan.yaml")
    assert str(caught.value) == (
        "p/plan.yaml: edited by hand, or built by another version, and now:\n"
        "p/plan.yaml: options.batch: found 0, expected from 1 to 1024\n"
        "p/plan.yaml: embed.rows: found [1, 2], expected 2 shares of 1024 rows"
    )
    assert caught.value.exit_code == 2
    assert caught.value.violations == check(plan)


@settings(max_examples=20, deadline=None)
@given(st.builds(Plan))
def test_any_plan_that_reads_is_checked_without_an_exception(plan: Plan) -> None:
    check(plan)
