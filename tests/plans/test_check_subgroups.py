"""Checks of a plan whose devices divide the KV cache of a group."""

from dataclasses import replace
from typing import Any

import pytest

from plans.check import check
from plans.codec import encode
from tests.plans.violations import violations_of
from tests.sample_plans import edited, spread_plan

NO_PAIRS = "stages[0].kv_subgroups: found [1, 2], expected divisors of the"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "stages[0].kv_subgroups",
            [1, 1],
            "stages[0].kv_subgroups: found [1, 1], expected sizes of at least 1 that add up to 3 devices",
        ),
        (
            "stages[0].kv_subgroups",
            [3, 0],
            "stages[0].kv_subgroups: found [3, 0], expected sizes of at least 1 that add up to 3 devices",
        ),
        (
            "stages[0].kv_subgroups",
            [1, 1, 1],
            "stages[0].kv_subgroups: found [1, 1, 1], expected a subgroup of 2 or more",
        ),
        (
            "stages[1].kv_axis",
            "context",
            "stages[1].kv_subgroups: found [1], expected a subgroup of 2 or more",
        ),
        ("options.kv_axis", "batch", "stages[0].kv_axis: found context, expected batch, as options.kv_axis asks for"),
        (
            "stages[0].runs[0].kv_heads",
            [4, 4, 3],
            "stages[0].runs[0].kv_heads: found [4, 4, 3], expected shares of 8 KV heads for subgroups of [1, 2], each "
            "at least 1 and equal inside one",
        ),
        (
            "stages[0].runs[0].kv_heads",
            [3, 4, 4],
            "stages[0].runs[0].kv_heads: found [3, 4, 4], expected shares of 8 KV heads for subgroups of [1, 2], each "
            "at least 1 and equal inside one",
        ),
        (
            "stages[0].runs[0].kv_heads",
            [8, 0, 0],
            "stages[0].runs[0].kv_heads: found [8, 0, 0], expected shares of 8 KV heads for subgroups of [1, 2], each "
            "at least 1 and equal inside one",
        ),
        (
            "draft_placement.kv_axis",
            None,
            "draft_placement.kv_axis: found nothing, expected one, as there are kv_subgroups",
        ),
        (
            "draft_placement.kv_subgroups",
            [1, 1],
            "draft_placement.kv_axis: found batch, expected nothing, as no KV head is on more than one device",
        ),
        (
            "draft_placement.kv_subgroups",
            [3],
            "draft_placement.kv_subgroups: found [3], expected sizes of at least 1 that add up to 2 devices",
        ),
        (
            "options.batch",
            1,
            "draft_placement.kv_subgroups: found [2], expected at most 1 in a subgroup, a sequence each",
        ),
        (
            "draft_placement.kv_heads",
            [4, 4],
            "draft_placement.kv_heads: found [4, 4], expected shares of 8 KV heads for subgroups of [2], each at least "
            "1 and equal inside one",
        ),
        (
            "stages[0].hop_transport",
            "local",
            "stages[0].hop_transport: found local, expected gloo between [cpu0, gpu0, gpu1, gpu2]",
        ),
        (
            "stages[1].hop_transport",
            "local",
            "stages[1].hop_transport: found local, expected nccl between [gpu0, gpu3]",
        ),
        (
            "embed.hop_transport",
            "gloo",
            "embed.hop_transport: found gloo, expected local: nothing is sent to the same devices, [cpu0]",
        ),
        ("embed.transport", "gloo", "embed.transport: found gloo, expected local between [cpu0]"),
        ("head.transport", "gloo", "head.transport: found gloo, expected nccl between [gpu2, gpu3]"),
        ("head.hop_transport", "local", "head.hop_transport: found local, expected nccl between [gpu3, gpu2]"),
        (
            "draft_placement.feature_transport",
            "nccl",
            "draft_placement.feature_transport: found nccl, expected local: nothing is sent to the same devices, "
            "[gpu2, gpu3]",
        ),
        ("head.devices[1]", "gpu9", "head.devices[1]: found gpu9, expected a device of the inventory"),
        (
            "head.devices[1]",
            "gpu2",
            "head.devices[1]: found gpu2, expected another device: the group has this one already",
        ),
        ("embed.devices", [], "embed.devices: found [], expected at least one device"),
        ("embed.rows", [128000], "embed.rows: found [128000], expected 1 shares of 128256 rows"),
        (
            "memory[0].weights_bytes",
            0,
            "memory[0].weights_bytes: found 0, expected more than 0 for the part that cpu0 has",
        ),
        (
            "options.strategy",
            "custom",
            "options.custom: found nothing, expected a device map, as the strategy is custom",
        ),
        (
            "options.custom",
            [{"module": "", "device": "gpu0"}],
            "options.custom: found 1 lines, expected nothing, as the strategy is latency",
        ),
        (
            "options.custom",
            [{"module": "b", "device": "gpu0"}, {"module": "a", "device": "gpu0"}],
            "options.custom: found [b, a], expected distinct modules in order",
        ),
        (
            "options.custom",
            [{"module": "a", "device": "tpu"}],
            "options.custom[0].device: found tpu, expected a device of the inventory",
        ),
    ],
)
def test_each_violation_of_a_spread_plan_is_reported(path: str, value: Any, message: str) -> None:
    assert message in violations_of(edited(spread_plan(), path, value))


def test_a_subgroup_by_batch_has_a_sequence_for_each_member() -> None:
    plan = edited(edited(spread_plan(), "stages[0].kv_axis", "batch"), "options.batch", 1)
    assert "stages[0].kv_subgroups: found [1, 2], expected at most 1 in a subgroup, a sequence each" in [
        str(violation) for violation in check(plan)
    ]
    assert not [v for v in check(edited(plan, "options.batch", 2)) if v.path.startswith("stages")]


def test_members_that_share_kv_heads_by_heads_have_equally_many_query_heads() -> None:
    plan = edited(spread_plan(), "stages[0].kv_axis", "heads")
    assert not [v for v in check(plan) if v.path.startswith("stages")]
    for queries, expected in ((8, 1), (24, 3)):
        odd = edited(plan, "model.layers[0].attention.num_heads", queries)
        assert (
            f"stages[0].kv_subgroups: found [1, 2], expected divisors of the {expected} query heads of a KV head, as "
            "the axis is heads"
        ) in violations_of(odd)
    unequal = edited(plan, "stages[0].runs[0].kv_heads", [4, 2, 2])
    assert [v for v in check(unequal) if v.path == "stages[0].runs[0].kv_heads"]


def test_parts_of_a_head_dim_are_whole_rotary_pairs() -> None:
    plan = edited(spread_plan(), "stages[0].kv_axis", "head_dim")
    assert not [v for v in check(plan) if v.path.startswith("stages")]
    odd = edited(plan, "model.layers[0].attention.head_dim", 126)
    assert f"{NO_PAIRS} 63 rotary pairs of a head" in violations_of(odd)
    normed = edited(plan, "model.layers[0].attention.qk_norm", True)
    assert "stages[0].kv_subgroups: found [1, 2], expected subgroups of 1: a norm of q and k is of a whole head" in [
        str(violation) for violation in check(normed)
    ]


def test_a_drafter_on_the_devices_of_the_tables_shares_them() -> None:
    plan = edited(spread_plan(), "draft.kind", "eagle")
    messages = violations_of(plan)
    assert (
        "draft_placement.head_rows: found [16000, 16000], expected nothing, as the base's are on the same devices"
        in messages
    )
    moved = edited(edited(spread_plan(), "embed.devices", ["gpu2", "gpu3"]), "embed.rows", [1, 128255])
    messages = violations_of(moved)
    assert (
        "draft_placement.embed_rows: found [64128, 64128], expected nothing, as the base's are on the same devices"
        in messages
    )
    own = edited(moved, "draft.own_embedding", True)
    assert not [v for v in check(own) if v.path == "draft_placement.embed_rows"]


def test_a_run_has_layers_of_one_mlp() -> None:
    plan = spread_plan()
    layers = plan.model.layers[0]
    classes = [replace(layers, num_layers=30), replace(layers, num_layers=50, mlp=replace(layers.mlp, bias=True))]
    mixed = edited(plan, "model.layers", [encode(kind) for kind in classes])
    assert "stages[0].runs[0].num_layers: found 60, expected fewer: the layers of a run have one MLP" in [
        str(violation) for violation in check(mixed)
    ]
