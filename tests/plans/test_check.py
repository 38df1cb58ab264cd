"""Checks of a plan: a sound plan has no violations; each violation has path, found and expected value."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plans.check import InvalidPlanError, check, different_runs, group_transport, require
from plans.codec import encode
from plans.schema import Plan, WeightFormat
from tests.sample_plans import MIB, edited, nvlink_plan, one_device_plan, spread_plan, two_stage_plan, with_memory

ROUTER: dict[str, Any] = {
    "scores": "sigmoid",
    "bias": False,
    "float32": True,
    "correction": True,
    "groups": 1,
    "picked_groups": 1,
    "scale": 2.5,
}
MOE: dict[str, Any] = {
    "kind": "moe",
    "intermediate_size": 768,
    "unit": 16,
    "activation": "silu",
    "bias": False,
    "num_experts": 8,
    "experts_per_token": 2,
    "norm_topk_prob": True,
}


@pytest.mark.parametrize("make", [two_stage_plan, one_device_plan, nvlink_plan, spread_plan])
def test_sound_plans_have_no_violations(make: Any) -> None:
    assert check(make()) == ()
    require(make(), "plan.yaml")


PLAN = two_stage_plan()
LEAST_FREE = PLAN.proof.min_free_bytes
KV = PLAN.memory[0].kv_bytes
OVERFULL = PLAN.memory[1].planned_bytes - PLAN.memory[1].weights_bytes + 11 * MIB


def static(paths: list[list[int]], *, depth: int = 1) -> dict[str, object]:
    """Return a static tree in the encoding of a plan."""
    top_k = 1 + max(max(path) for path in paths)
    return {"kind": "static", "total_token": 1 + len(paths), "depth": depth, "top_k": top_k, "paths": paths}


PATHS = "options.tree.paths:"
DIGITS = "64 hexadecimal digits"
BESIDE = {"devices": 2, "bandwidth_bytes_per_s": 1, "flops_per_s": 1, "overhead_ns": 10**6}
"""Rates of a device beside another one."""
QUICK = BESIDE | {"bandwidth_bytes_per_s": 9, "flops_per_s": 80}


def products(*rates: tuple[int, int]) -> dict[str, Any]:
    """Return measured rates with products of so many bytes and operations per second."""
    fields = [{"bandwidth_bytes_per_s": nbytes, "flops_per_s": flops} for nbytes, flops in rates]
    return {"products": fields, "row_ns": 0, "tree_ns": 0}


def scores(*times: tuple[int, int]) -> list[dict[str, int]]:
    """Return times of attention by dims of a head."""
    return [{"head_dim": dims, "ns": ns} for dims, ns in times]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", "5.0", "schema: found 5.0, expected 4.x"),
        ("inputs.base_config_sha256", "xyz", f"inputs.base_config_sha256: found xyz, expected {DIGITS}"),
        ("inputs.draft_tensors_sha256", None, f"inputs.draft_tensors_sha256: found nothing, expected {DIGITS}"),
        ("options.batch", 0, "options.batch: found 0, expected from 1 to 1024"),
        ("options.prefill_chunk", 513, "options.prefill_chunk: found 513, expected from 1 to the context, 512"),
        ("options.stall_timeout_s", 0, "options.stall_timeout_s: found 0, expected from 1 to 3600"),
        ("options.gap_ppm", 10**6, "options.gap_ppm: found 1000000, expected less than 1000000"),
        ("options.tree.depth", 4 * 10**9, "options.tree.depth: found 4000000000, expected at most 64"),
        (
            "options.tree.total_token",
            712,
            "options.tree.total_token: found 712, "
            "expected at most 711: the root and a pool of 10 + 7 * 10^2 candidates",
        ),
        (
            "options.tree.total_token",
            1,
            "options.tree.total_token: found 1, expected at least 2: the root and a drafted token",
        ),
        (
            "options.tree",
            {"kind": "dynamic", "total_token": 60, "depth": 64, "top_k": 64},
            "options.tree: found masks of 16777216 values, expected at most 4194304: a smaller tree or batch",
        ),
        ("options.tree", None, "options.tree: found nothing, expected one, as there is a draft"),
        ("options.tree.kind", "static", f"{PATHS} found nothing, expected nodes exactly where the kind is static"),
        (
            "options.tree",
            static([[0], [1], [0, 2]], depth=2),
            "options.tree.depth: found 2, expected 1, which follows from the paths",
        ),
        (
            "options.tree",
            static([[0], [0, 1], [1]]),
            f"{PATHS} found 3 nodes, expected the shorter first, then in order",
        ),
        ("options.tree", static([[0], [1, 0]]), f"{PATHS} found 2 nodes, expected 1.0: its parent before it"),
        ("options.tree", static([[0], [0]]), f"{PATHS} found 2 nodes, expected 0: once"),
        ("inventory.hosts[0].name", "zzz", "inventory.hosts: found [zzz, right], expected distinct names in order"),
        ("inventory.network", None, "inventory.network: found nothing, expected a link, as there are 2 hosts"),
        (
            "inventory.network.bandwidth_bytes_per_s",
            0,
            "inventory.network.bandwidth_bytes_per_s: found 0, expected at least 1",
        ),
        (
            "inventory.network.sums",
            [{"members": 2, "ns": 9}, {"members": 4, "ns": 8}],
            "inventory.network.sums[1].ns: found 8, expected at least 9, which fewer members take",
        ),
        (
            "inventory.devices[0].together",
            [{"devices": 1, "bandwidth_bytes_per_s": 1, "flops_per_s": 1, "overhead_ns": 10**6}],
            "inventory.devices[0].together[0].devices: found 1, expected more than 1",
        ),
        (
            "inventory.devices[0].together",
            [{"devices": 2, "bandwidth_bytes_per_s": 1, "flops_per_s": 10**12, "overhead_ns": 10**6}],
            "inventory.devices[0].together[0].flops_per_s: found 1000000000000, "
            "expected from 1 to 50000000000, the rate with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"pass_ns": 10**5}],
            "inventory.devices[0].together[0].pass_ns: found 100000, "
            "expected at least 150000, the time with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"table_ns": 2 * 10**6}, BESIDE | {"devices": 3}],
            "inventory.devices[0].together[1].table_ns: found nothing, which means 1000000, "
            "expected at least 2000000, the time with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"flops_per_s": 9, "measured": products((1, 3), (1, 5), (1, 8))}],
            "inventory.devices[0].together[0].measured.products: found first bandwidth and last rate (1, 8), "
            "expected those of the device, (1, 9)",
        ),
        (
            "inventory.devices[0].together",
            [
                BESIDE
                | {"bandwidth_bytes_per_s": 50, "flops_per_s": 99, "measured": products((50, 50), (9, 50), (8, 99))}
            ],
            "inventory.devices[0].together[0].measured.products[0]: found a product that others make slower, "
            "expected products on a convex curve",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"measured": products((1, 1), (1, 1))}],
            "inventory.devices[0].together[0].measured.products[1]: found 1 bytes and 1 operations per second, "
            "expected fewer bytes and more operations than of the one before",
        ),
        (
            "inventory.devices[0].together",
            [
                QUICK | {"measured": products((9, 10), (1, 80))},
                QUICK | {"devices": 3, "measured": products((9, 70), (8, 80))},
            ],
            "inventory.devices[0].together[1].measured.products: found a product that is faster, "
            "expected none faster than with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [QUICK | {"measured": products((9, 10), (1, 80))}, QUICK | {"devices": 3}],
            "inventory.devices[0].together[1].measured.products: found a product that is faster, "
            "expected none faster than with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"measured": products((2, 1), (1, 1))}, BESIDE],
            "inventory.devices[0].together[0].measured.products: found first bandwidth and last rate (2, 1), "
            "expected those of the device, (1, 1)",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"measured": products((1, 1), (1, 2)) | {"scores": [{"head_dim": 8, "ns": 9}]}}],
            "inventory.devices[0].together[0].measured.scores: found heads of [8] dims, "
            "expected [], as with fewer devices",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"measured": products((1, 1), (1, 2)) | {"scores": scores((8, 9), (16, 19))}}],
            "inventory.devices[0].together[0].measured.scores[1].ns: found 19, expected at most 18, as 8 dims take 9",
        ),
        (
            "inventory.devices[0].together",
            [BESIDE | {"measured": products((1, 1), (1, 2)) | {"scores": scores((8, 9), (8, 9))}}],
            "inventory.devices[0].together[0].measured.scores[1].head_dim: found 8, expected more than 8",
        ),
        (
            "inventory.devices[0].together",
            [
                QUICK | {"measured": products((9, 10), (1, 80)) | {"scores": scores((8, 9))}},
                QUICK | {"devices": 3, "measured": products((9, 10), (1, 80)) | {"scores": scores((8, 7))}},
            ],
            "inventory.devices[0].together[1].measured.scores[0].ns: found 7, "
            "expected at least 9, the time with fewer devices",
        ),
        (
            "inventory.hosts[0].pairs[0].b",
            "cpu2",
            "inventory.hosts[0].pairs[0]: found cpu0 and cpu2, expected two devices of host left",
        ),
        (
            "inventory.devices[3].id",
            "cpu2",
            "inventory.devices[2].id: found cpu2, expected another id: 2 devices have this one",
        ),
        (
            "inventory.devices[3].id",
            "a/b",
            "inventory.devices[3].id: found 'a/b', "
            "expected at most 64 letters, digits, '.', '_' and '-': it names a file",
        ),
        (
            "inventory.devices[0].id",
            "x",
            "inventory.devices: found [x, cpu1, cpu2, cpu3], expected the order of hosts, then of ids",
        ),
        ("inventory.devices[3].host", "box", "inventory.devices[3].host: found box, expected one of left, right"),
        (
            "inventory.devices[3].reserve_bytes",
            7 * MIB,
            "inventory.devices[3].reserve_bytes: found 7340032, expected at most the memory, 6291456",
        ),
        ("inventory.devices[3].ordinal", 1, "inventory.devices[3].ordinal: found 1, expected 0 for a CPU"),
        (
            "model.layers[0].attention.num_heads",
            7,
            "model.layers[0].attention.num_heads: found 7, expected a multiple of 4 KV heads",
        ),
        (
            "model.layers[0].attention.head_dim",
            33,
            "model.layers[0].attention.head_dim: found 33, expected an even number: rotary pairs",
        ),
        (
            "model.layers[0].mlp.unit",
            500,
            "model.layers[0].mlp.intermediate_size: found 768, expected a multiple of the unit, 500",
        ),
        (
            "model.layers[0].mlp.num_experts",
            8,
            "model.layers[0].mlp.num_experts: found 8, expected 1, as a gated MLP has no experts",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"experts_per_token": 9},
            "model.layers[0].mlp.experts_per_token: found 9, expected from 1 to the 8 experts",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"router": ROUTER | {"groups": 3}},
            "model.layers[0].mlp.router.groups: found 3, "
            "expected 1, or a divisor of the 8 experts with at least 2 in a group",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"router": ROUTER | {"groups": 4, "picked_groups": 5}},
            "model.layers[0].mlp.router.picked_groups: found 5, expected from 1 to the 4 groups",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"experts_per_token": 3, "router": ROUTER | {"groups": 4}},
            "model.layers[0].mlp.router.picked_groups: found 1, expected groups with 3 experts, which a token takes",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"router": ROUTER | {"scale": 0.0}},
            "model.layers[0].mlp.router.scale: found 0.0, expected from 1e-06 to 1000000.0",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"swiglu_alpha": 1.0},
            "model.layers[0].mlp.swiglu_alpha: found 1.0, expected nothing, as there is no swiglu_limit",
        ),
        (
            "model.layers[0].mlp.router",
            ROUTER,
            "model.layers[0].mlp.router: found one, expected nothing, as a gated MLP has no experts",
        ),
        (
            "model.layers[0].mlp.swiglu_limit",
            7.0,
            "model.layers[0].mlp.swiglu_limit: found 7.0, expected nothing, but in experts that are gated by silu",
        ),
        ("draft.mlp", MOE, "draft.mlp.kind: found moe, expected gated: an EAGLE head has no experts"),
        ("model.eos_token_ids[0]", 1024, "model.eos_token_ids[0]: found 1024, expected less than the vocabulary, 1024"),
        *(
            ("draft.aux_layers", aux, f"draft.aux_layers: found [{shown}], expected {expected}")
            for aux, shown, expected in (
                ([2, 4, 9], "2, 4, 9", "at most 16 different ones from 0 to 8, in order"),
                ([2, 4, 4], "2, 4, 4", "at most 16 different ones from 0 to 8, in order"),
                ([4, 2], "4, 2", "at most 16 different ones from 0 to 8, in order"),
            )
        ),
        ("draft.norm_output", False, "draft.norm_output: found false, expected true, or nothing"),
        ("draft.logit_scale", 0.0, "draft.logit_scale: found 0.0, expected from 1e-06 to 1000000.0"),
        ("draft.mask_token_id", 1024, "draft.mask_token_id: found 1024, expected less than the vocabulary, 1024"),
        (
            "draft.mask_token_id",
            5,
            "options.tree: found total_token 60, depth 7, top_k 10, "
            "expected a chain, as one pass drafts it: top_k 1, total_token = depth + 2",
        ),
        ("draft.kind", "eagle", "draft.aux_layers: found [2, 4, 5], expected none, as the drafter is of kind eagle"),
        ("draft.target_hidden_size", 128, "draft.target_hidden_size: found 128, expected the model's, 256"),
        ("draft.hidden_size", 128, "draft.own_embedding: found false, expected true, as the model's is 256 wide"),
        (
            "draft.maps_vocabulary",
            False,
            "draft.maps_vocabulary: found false, expected true, as 512 of 1024 tokens are drafted",
        ),
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
        ("model.layers[0].num_layers", 1025, "model.layers[0].num_layers: found 1025, expected from 1 to 1024"),
        ("options.batch", 1025, "options.batch: found 1025, expected from 1 to 1024"),
        ("options.context", 1 << 31, "options.context: found 2147483648, expected from 1 to 2147483647"),
        ("model.vocab_size", 1 << 31, "model.vocab_size: found 2147483648, expected from 1 to 2147483647"),
        ("model.hidden_size", 1 << 31, "model.hidden_size: found 2147483648, expected from 1 to 2147483647"),
        ("model.norm_eps", 1e300, "model.norm_eps: found 1e+300, expected from 1e-15 to 1.0"),
        ("model.norm_eps", 8.0, "model.norm_eps: found 8.0, expected from 1e-15 to 1.0"),
        ("model.norm_eps", 0.0, "model.norm_eps: found 0.0, expected from 1e-15 to 1.0"),
        ("model.norm_eps", -1e-6, "model.norm_eps: found -1e-06, expected from 1e-15 to 1.0"),
        ("draft.norm_eps", 1e300, "draft.norm_eps: found 1e+300, expected from 1e-15 to 1.0"),
        ("draft.hidden_size", 0, "draft.hidden_size: found 0, expected from 1 to 2147483647"),
        ("draft.num_layers", 0, "draft.num_layers: found 0, expected from 1 to 1024"),
        (
            "model.layers[0].attention.num_heads",
            1028,
            "model.layers[0].attention.num_heads: found 1028, expected at most 1024",
        ),
        ("draft.attention.head_dim", 4098, "draft.attention.head_dim: found 4098, expected at most 4096"),
        (
            "model.layers[0].mlp.intermediate_size",
            1 << 40,
            "model.layers[0].mlp.intermediate_size: found 1099511627776, expected at most 2147483647",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"num_experts": 1025},
            "model.layers[0].mlp.num_experts: found 1025, expected from 1 to 1024",
        ),
        ("proof.bound_ns", 19_830_001, "proof.bound_ns: found 19830001, expected at most the least step, 19830000"),
        (
            "proof.bound_ns",
            19_000_000,
            "proof.bound_ns: found 19000000, expected the least step, 19830000, as the status is OPTIMAL",
        ),
        (
            "proof.objective_ns",
            19_840_000,
            "proof.objective_ns: found 19840000, expected from the least step, 19830000, to 19831983",
        ),
        ("proof.objective_ns", 1, "proof.objective_ns: found 1, expected from the least step, 19830000, to 19831983"),
        ("options.simplify_ppm", 1_000_001, "options.simplify_ppm: found 1000001, expected from 0 to 1000000"),
        ("options.max_devices", 0, "options.max_devices: found 0, expected at least 1, or null"),
        ("options.max_devices", 2, "memory: found 3 devices in use, expected at most 2"),
        (
            "proof.min_free_bytes",
            1,
            f"proof.min_free_bytes: found 1, expected {LEAST_FREE}, the least that a device in use has free",
        ),
    ],
)
def test_each_violation_is_reported(path: str, value: Any, message: str) -> None:
    assert message in [str(violation) for violation in check(edited(two_stage_plan(), path, value))]


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
    assert message in [str(violation) for violation in check(edited(spread_plan(), path, value))]


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
        ) in [str(violation) for violation in check(odd)]
    unequal = edited(plan, "stages[0].runs[0].kv_heads", [4, 2, 2])
    assert [v for v in check(unequal) if v.path == "stages[0].runs[0].kv_heads"]


def two_classes(plan: Plan, **attention: object) -> Plan:
    """Return the plan with its last layer in a class of its own, of another attention."""
    (layers,) = plan.model.layers
    other = replace(layers, num_layers=1, attention=replace(layers.attention, **attention))  # type: ignore[arg-type]
    classes = (replace(layers, num_layers=layers.num_layers - 1), other)
    run = plan.stages[0].runs[0]
    runs = (replace(run, num_layers=run.num_layers - 1), replace(run, num_layers=1))
    stages = (replace(plan.stages[0], runs=runs),)
    return with_memory(
        replace(plan, model=replace(plan.model, layers=classes), stages=stages),
        {entry.device: entry.weights_bytes for entry in plan.memory},
        {entry.device: entry.draft_weights_bytes for entry in plan.memory},
    )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("head_dim", 16, "32"), ("num_heads", 16, "8"), ("num_kv_heads", 2, "4"), ("qk_norm", True, "False")],
)
def test_layers_differ_in_their_mlps_windows_and_formats_alone(field: str, value: Any, expected: str) -> None:
    """A stage has one rotary table: with another head_dim the kernel of attention would read beyond it."""
    assert check(two_classes(one_device_plan())) == ()
    reason = "as in model.layers[0]: only MLPs, windows and formats differ"
    message = f"attention.{field}: found {value}, expected {expected}, {reason}"
    violations = [str(violation) for violation in check(two_classes(one_device_plan(), **{field: value}))]
    assert f"model.layers[1].{message}" in violations


@pytest.mark.parametrize(("ordered", "found"), [(None, None), (True, None), (False, "false")])
def test_columns_are_ordered_or_nothing_is_said_of_it(ordered: bool | None, found: str | None) -> None:
    plan, path = one_device_plan(), "model.head_format.ordered"
    form = WeightFormat(code="int4", group=32, zeros=False, scale="float16", ordered=ordered)
    violations = check(replace(plan, model=replace(plan.model, head_format=form)))
    expected = [] if found is None else [f"{path}: found {found}, expected true, or nothing"]
    assert [str(violation) for violation in violations if violation.path == path] == expected


def test_layers_of_all_classes_are_bounded_together() -> None:
    plan = one_device_plan()
    (layers,) = plan.model.layers
    many = replace(plan, model=replace(plan.model, layers=(replace(layers, num_layers=600),) * 2))
    assert "model.layers: found 1200 layers, expected at most 1024" in [str(violation) for violation in check(many)]


def test_many_violations_take_a_short_message_and_little_time() -> None:
    names = tuple(f"x{number}" for number in range(100_000))
    plan = replace(one_device_plan(), embed=replace(one_device_plan().embed, devices=names))
    with pytest.raises(InvalidPlanError) as caught:
        require(plan, "plan.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 52
    assert lines[-1].endswith(" more")
    assert max(map(len, lines)) < 300


def test_devices_are_bounded() -> None:
    plan = one_device_plan()
    devices = tuple(replace(plan.inventory.devices[0], id=f"cpu{number}") for number in range(4097))
    plan = replace(plan, inventory=replace(plan.inventory, devices=devices))
    assert "inventory.devices: found 4097 devices, expected at most 4096" in [str(item) for item in check(plan)]


def test_parts_of_a_head_dim_are_whole_rotary_pairs() -> None:
    plan = edited(spread_plan(), "stages[0].kv_axis", "head_dim")
    assert not [v for v in check(plan) if v.path.startswith("stages")]
    odd = edited(plan, "model.layers[0].attention.head_dim", 126)
    assert f"{NO_PAIRS} 63 rotary pairs of a head" in [str(violation) for violation in check(odd)]
    normed = edited(plan, "model.layers[0].attention.qk_norm", True)
    assert "stages[0].kv_subgroups: found [1, 2], expected subgroups of 1: a norm of q and k is of a whole head" in [
        str(violation) for violation in check(normed)
    ]


def test_a_drafter_on_the_devices_of_the_tables_shares_them() -> None:
    plan = edited(spread_plan(), "draft.kind", "eagle")
    messages = [str(violation) for violation in check(plan)]
    assert (
        "draft_placement.head_rows: found [16000, 16000], expected nothing, as the base's are on the same devices"
        in messages
    )
    moved = edited(edited(spread_plan(), "embed.devices", ["gpu2", "gpu3"]), "embed.rows", [1, 128255])
    messages = [str(violation) for violation in check(moved)]
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


def test_classes_follow_a_pattern_that_may_be_cut_short() -> None:
    def with_pattern(counts: tuple[int, int], pattern: list[int], window: int = 100) -> Plan:
        plan = spread_plan()
        layers = plan.model.layers[0]
        sliding = replace(layers, num_layers=counts[0], attention=replace(layers.attention, window=window))
        classes = [encode(kind) for kind in (sliding, replace(layers, num_layers=counts[1]))]
        return edited(edited(plan, "model.layers", classes), "model.pattern", pattern)

    def facts(plan: Plan) -> list[str]:
        return [str(violation) for violation in check(plan) if violation.path.startswith("model")]

    assert spread_plan().model.num_layers == 80
    assert facts(with_pattern((54, 26), [0, 0, 1])) == []
    assert not [v for v in check(with_pattern((54, 26), [0, 0, 1])) if v.path.startswith("stages")], "one run of all"
    assert facts(with_pattern((53, 27), [0, 0, 1])) == [
        "model.layers[0].num_layers: found 53, expected 54, as in model.pattern",
        "model.layers[1].num_layers: found 27, expected 26, as in model.pattern",
    ]
    for pattern, found in (([], "[]"), ([0, 2], "[0, 2]")):
        expected = f"model.pattern: found {found}, expected from 1 to 80 indices of model.layers"
        assert facts(with_pattern((54, 26), pattern)) == [expected]
    context = spread_plan().options.context
    for window in (0, context):
        assert facts(with_pattern((54, 26), [0, 0, 1], window)) == [
            f"model.layers[0].attention.window: found {window}, expected from 1 to less than the context, {context}: "
            "nothing, where all positions are seen"
        ]


def test_an_accepted_gap_is_no_violation() -> None:
    plan = edited(edited(two_stage_plan(), "proof.status", "FEASIBLE"), "proof.bound_ns", 19_000_000)
    assert [str(violation) for violation in check(plan)] == [
        "proof.bound_ns: found 19000000, expected within 0 ppm of the least step, 19830000"
    ]
    assert check(edited(plan, "options.gap_ppm", 50_000)) == ()


@pytest.mark.parametrize("option", ["simplify_ppm", "within_ppm"])
def test_a_step_that_is_longer_than_the_least_by_what_an_option_allows_is_no_violation(option: str) -> None:
    plan = edited(edited(two_stage_plan(), "proof.least_ns", 19_800_000), "proof.bound_ns", 19_800_000)
    assert [violation.path for violation in check(plan)] == ["proof.objective_ns"]
    assert check(edited(plan, f"options.{option}", 5_000)) == ()


def test_bounds_of_simplicity_exclude_nothing_that_is_as_simple_as_the_plan() -> None:
    plan = edited(two_stage_plan(), "options.simplify_ppm", 5_000)
    used, runs, step_ns = len(plan.memory), different_runs(plan), plan.proof.objective_ns
    assert runs == 3
    sound = {"devices_bound": used, "runs_bound": runs, "step_bound_ns": step_ns}

    def violations(of: Plan, **changed: int | None) -> list[str]:
        bounds = {name: value for name, value in (sound | changed).items() if value is not None}
        return [str(violation) for violation in check(edited(of, "proof.simplicity", bounds))]

    assert violations(plan) == violations(plan, devices_bound=1, runs_bound=1, step_bound_ns=1) == []
    path = "proof.simplicity"
    for name, most, words in (("devices_bound", used, "in use"), ("runs_bound", runs, "of the plan")):
        for value in (0, most + 1):
            expected = f"{path}.{name}: found {value}, expected from 1 to the {most} {words}"
            assert violations(plan, **{name: value}) == [expected]
    late = f"{path}.step_bound_ns: found {step_ns + 1}, expected at most the plan's step, {step_ns}"
    assert violations(plan, step_bound_ns=step_ns + 1) == [late]
    none = f"{path}.runs_bound: found nothing, expected a number, as there is no earlier plan"
    assert violations(plan, runs_bound=None) == [none]
    kept = edited(plan, "options.within_ppm", 20_000)
    assert violations(kept, runs_bound=None) == []
    assert violations(kept) == [f"{path}.runs_bound: found 3, expected nothing, as weights are kept"]
    exact = edited(plan, "options.simplify_ppm", 0)
    assert violations(exact) == [f"{path}: found bounds, expected nothing, as simplify_ppm is 0"]


def test_every_field_of_the_drafter_is_there_or_none() -> None:
    plan = edited(edited(two_stage_plan(), "draft", None), "options.tree", None)
    assert [str(violation) for violation in check(plan)] == [
        f"inputs.draft_config_sha256: found {'3' * 64}, expected nothing, as there is no draft",
        f"inputs.draft_tensors_sha256: found {'4' * 64}, expected nothing, as there is no draft",
        "draft_placement: found one, expected nothing, as there is no draft",
    ]


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


def test_transports_of_groups() -> None:
    inventory = nvlink_plan().inventory
    assert group_transport(inventory, ["gpu0"]) == "local"
    assert group_transport(inventory, ["gpu0", "gpu0"]) == "local"
    assert group_transport(inventory, ["gpu0", "gpu3"]) == "nccl"
    one_gpu = edited(nvlink_plan(), "inventory.devices[3].ordinal", 0).inventory
    assert group_transport(one_gpu, ["gpu0", "gpu3"]) == "shm"
    assert group_transport(one_gpu, ["gpu0", "gpu1"]) == "nccl"
    gloo_only = edited(nvlink_plan(), "inventory.hosts[0].transport", "gloo").inventory
    assert group_transport(gloo_only, ["gpu0", "gpu3"]) == "gloo"


@settings(max_examples=20, deadline=None)
@given(st.builds(Plan))
def test_any_plan_that_reads_is_checked_without_an_exception(plan: Plan) -> None:
    check(plan)
