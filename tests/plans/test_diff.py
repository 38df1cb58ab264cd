"""Differences of two plans: empty exactly for equal plans, aligned by name, with moved layers and bytes."""

import dataclasses

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plans.diff import Difference, diff, headline, move_lines, moved_bytes, summary
from plans.schema import Plan
from tests.sample_plans import edited, nvlink_plan, one_device_plan, two_stage_plan

st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))  # a plan has only finite numbers


@settings(  # drawing a plan is slow
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.builds(Plan))
def test_the_difference_is_empty_exactly_for_equal_plans(drawn: Plan) -> None:
    """Compare drawn plans, and plans that differ in one field only."""
    plan = two_stage_plan()
    assert diff(drawn, drawn) == ()
    for field in dataclasses.fields(Plan):
        other = dataclasses.replace(plan, **{field.name: getattr(drawn, field.name)})
        assert (diff(plan, other) == ()) == (plan == other), field.name


def test_equal_plans_have_no_summary() -> None:
    assert summary(two_stage_plan(), two_stage_plan()) == ()


def test_a_difference_names_kind_path_and_values() -> None:
    plan = two_stage_plan()
    assert diff(plan, edited(plan, "memory[2].kv_bytes", 5)) == (
        Difference(kind="memory", path="memory[cpu2].kv_bytes", before=plan.memory[2].kv_bytes, after=5),
    )
    assert diff(plan, edited(plan, "stages[0].runs[1].kv_heads", [3, 1])) == (
        Difference(kind="shares", path="stages[0].runs[1].kv_heads", before=[2, 2], after=[3, 1]),
    )
    assert diff(plan, edited(plan, "options.tree", None)) == (
        Difference(
            kind="options",
            path="options.tree",
            before={"kind": "dynamic", "total_token": 60, "depth": 7, "top_k": 10},
            after=None,
        ),
    )


def test_the_kind_of_a_difference_is_its_section() -> None:
    plan = two_stage_plan()
    kinds = {
        "schema": "3.7",
        "inputs.base_config_sha256": "f",
        "inventory.hosts[0].transport": "gloo",
        "model.hidden_size": 1,
        "stages[0].devices": ["cpu3"],
        "stages[0].transport": "local",
        "stages[0].predicted_ns": 1,
        "embed.rows": [0, 1],
        "draft_placement.devices": ["cpu3"],
        "draft_placement.kv_heads": [1],
        "message_transport": "nccl",
        "proof.bound_ns": 1,
    }
    actual = [diff(plan, edited(plan, path, value))[0].kind for path, value in kinds.items()]
    assert actual == [
        *("schema", "inputs", "inventory", "model", "layers", "transport", "prediction", "shares", "draft"),
        *("shares", "transport", "proof"),
    ]


def test_devices_are_aligned_by_id() -> None:
    plan = two_stage_plan()
    fewer = dataclasses.replace(plan.inventory, devices=plan.inventory.devices[1:])
    (only,) = diff(plan, dataclasses.replace(plan, inventory=fewer))
    assert (only.path, only.after) == ("inventory.devices[cpu0]", None)
    assert only.before["memory_bytes"] == 24 << 20


def test_another_order_is_a_difference() -> None:
    plan = two_stage_plan()
    (only,) = diff(plan, dataclasses.replace(plan, memory=plan.memory[::-1]))
    assert str(only) == "memory: [cpu0, cpu1, cpu2] -> [cpu2, cpu1, cpu0]"


def test_moves_are_maximal_runs_of_layers() -> None:
    assert move_lines(two_stage_plan(), one_device_plan()) == (
        "layers 0-2: cpu0 (3 KV heads, 512 MLP channels) + cpu1 (1 KV heads, 256 MLP channels) -> cpu2",
        "layers 3-4: cpu0 (2 KV heads, 528 MLP channels) + cpu1 (2 KV heads, 240 MLP channels) -> cpu2",
    )


def test_moves_of_layers_whose_mlp_units_differ_have_a_line_each() -> None:
    plan = two_stage_plan()
    (layers,) = plan.model.layers
    coarse = dataclasses.replace(layers, num_layers=6, mlp=dataclasses.replace(layers.mlp, unit=32))
    kinds = (dataclasses.replace(layers, num_layers=2), coarse)
    plan = dataclasses.replace(plan, model=dataclasses.replace(plan.model, layers=kinds))
    other = edited(plan, "stages[0].runs[0].kv_heads", [1, 3])
    assert move_lines(plan, other) == (
        "layers 0-1: cpu0 (3 KV heads, 512 MLP channels) + cpu1 (1 KV heads, 256 MLP channels) -> "
        "cpu0 (1 KV heads, 512 MLP channels) + cpu1 (3 KV heads, 256 MLP channels)",
        "layer 2: cpu0 (3 KV heads, 1024 MLP channels) + cpu1 (1 KV heads, 512 MLP channels) -> "
        "cpu0 (1 KV heads, 1024 MLP channels) + cpu1 (3 KV heads, 512 MLP channels)",
    )


HEAD_BYTES = 32 * ((2 + 2) * 256 + 2 * 256) * 4
UNIT_BYTES = 3 * 16 * 256 * 4


def test_moved_bytes_count_weights_that_a_device_did_not_have() -> None:
    plan = two_stage_plan()
    assert moved_bytes(plan, plan) == {}
    other = edited(plan, "stages[0].runs[1].kv_heads", [3, 1])
    assert moved_bytes(plan, other) == {"cpu0": 2 * HEAD_BYTES}
    other = edited(plan, "stages[0].runs[0].mlp_units", [30, 18])
    assert moved_bytes(plan, other) == {"cpu1": 3 * 2 * UNIT_BYTES}
    layers = 5 * (4 * HEAD_BYTES + 48 * UNIT_BYTES + 2 * 256 * 4)
    assert moved_bytes(plan, one_device_plan()) == {"cpu2": layers + 1024 * 256 * 4}
    split = edited(edited(plan, "embed.devices", ["cpu1", "cpu3"]), "embed.rows", [1000, 24])
    assert moved_bytes(plan, split) == {"cpu1": 1000 * 256 * 4, "cpu3": 24 * 256 * 4}
    assert moved_bytes(split, plan) == {"cpu0": 1000 * 256 * 4, "cpu1": 24 * 256 * 4}


def test_moved_bytes_of_kv_heads_that_become_shared() -> None:
    """From two members with two KV heads each to both with all four, divided by context, then by head_dim."""
    plan = edited(two_stage_plan(), "stages[0].runs[0].kv_heads", [2, 2])
    shared = edited(edited(plan, "stages[0].kv_subgroups", [2]), "stages[0].kv_axis", "context")
    shared = edited(edited(shared, "stages[0].runs[0].kv_heads", [4, 4]), "stages[0].runs[1].kv_heads", [4, 4])
    qkv_head = 32 * (2 + 2) * 256 * 4
    assert moved_bytes(plan, shared) == {"cpu0": 5 * 2 * qkv_head, "cpu1": 5 * 2 * qkv_head}
    assert moved_bytes(shared, plan) == {}
    halves = edited(shared, "stages[0].kv_axis", "head_dim")
    columns = 128 * 256 * 4  # of o: a member has half of the columns, half of which it had before
    assert moved_bytes(shared, halves) == {"cpu0": 5 * columns // 2, "cpu1": 5 * columns // 2}


def test_all_bytes_move_if_the_weights_differ() -> None:
    plan = two_stage_plan()
    other = edited(plan, "inputs.draft_tensors_sha256", "5" * 64)
    head = 256 * 768 + 4 * 32 * ((2 + 2) * 512 + 2 * 256) + 3 * 768 * 256 + 1024 * 256 + 512 * 256
    small = 4 * 4 * 256 + 4 * 16 + 8 * 512  # norms, rotary frequencies, d2t
    assert moved_bytes(plan, other) == {"cpu2": 4 * head + small}
    assert set(moved_bytes(plan, nvlink_plan())) == {"gpu0", "gpu1", "gpu2", "gpu3"}


def test_the_headline_has_step_times_and_moved_bytes() -> None:
    plan = two_stage_plan()
    other = edited(plan, "stages[0].runs[1].kv_heads", [3, 1])
    assert headline(plan, other) == "step 19.8 ms, unchanged; moves 0.4 MiB of weights: cpu0 0.4 MiB"
    slower = edited(other, "proof.objective_ns", 20_030_000)
    assert headline(plan, slower) == "step 19.8 ms -> 20.0 ms (+1.0%); moves 0.4 MiB of weights: cpu0 0.4 MiB"


def test_the_summary_lists_step_moves_and_changes() -> None:
    plan = two_stage_plan()
    other = edited(plan, "stages[1].runs[0].mlp_units", [47])
    assert summary(plan, edited(other, "proof.objective_ns", 5)) == (
        "step 19.8 ms -> 0.0 us (-100.0%); moves no weights",
        "layers 5-7: cpu2 -> cpu2",
        "stages[1].runs[0].mlp_units: [48] -> [47]",
        "proof.objective_ns: 19830000 -> 5",
    )


def test_another_checkpoint_of_the_same_formats_is_named() -> None:
    plan = two_stage_plan()
    line = "another checkpoint of the same sizes and formats"
    assert any(text.startswith(line) for text in summary(plan, edited(plan, "inputs.base_tensors_sha256", "f" * 64)))
    assert not any(text.startswith(line) for text in summary(plan, edited(plan, "inputs.base_config_sha256", "f" * 64)))
