"""Which devices group rows by expert, and what the others run instead, priced and counted."""

import dataclasses

import pytest

from planner.costs.shares import Work, unit_work
from plans.buffers import stage_buffers
from plans.kv import whole_heads
from plans.schema import DType, Mlp
from plans.step import EVERY_EXPERT_ROWS, forward_rows, groups_experts, ungrouped_rows
from tests.plan_factory import group, make_device, make_model, make_plan

MODEL = make_model(num_layers=8)
OPTIONS = make_plan(MODEL, [group(MODEL, ["a"], 8)], context=2048, prefill_chunk=512).options
GATED = MODEL.layers[0].mlp
MIXTRAL = dataclasses.replace(GATED, kind="moe", num_experts=8, experts_per_token=2)
MANY = dataclasses.replace(GATED, kind="moe", num_experts=128, experts_per_token=8)


@pytest.mark.parametrize(
    ("capability", "dtype", "grouped"),
    [
        *((90, "bfloat16", True), (100, "bfloat16", True), (103, "bfloat16", True), (90, "float16", False)),
        *((86, "bfloat16", False), (89, "bfloat16", False), (120, "bfloat16", False), (None, "bfloat16", False)),
        *((110, "bfloat16", False), (90, "float32", False), (75, "float16", False)),
    ],
)
def test_a_gpu_groups_rows_where_torch_has_a_kernel(capability: int | None, dtype: DType, grouped: bool) -> None:
    gpu = dataclasses.replace(make_device("a"), kind="cuda", compute_capability=capability)
    assert groups_experts(gpu, dtype, MIXTRAL, 4096) == grouped
    assert groups_experts(make_device("a"), dtype, MIXTRAL, 4096), "a CPU has kernels of the runtime"
    assert not groups_experts(gpu, dtype, dataclasses.replace(MIXTRAL, unit=4), 4096), "rows are off 16 bytes"
    options = dataclasses.replace(OPTIONS, dtype=dtype)
    assert ungrouped_rows(options, 4096, GATED, gpu) is None
    assert (ungrouped_rows(options, 4096, MIXTRAL, gpu) is None) == grouped


def test_all_experts_take_the_memory_of_grouped_rows_or_are_run_on_the_rows_of_a_verify() -> None:
    gpu = dataclasses.replace(make_device("a"), kind="cuda", compute_capability=86)
    assert ungrouped_rows(OPTIONS, 32, MIXTRAL, gpu) == 512 * 2 // 8
    plain = dataclasses.replace(OPTIONS, tree=None)
    assert ungrouped_rows(plain, 32, MANY, gpu) == 512 * 8 // 128
    trees = dataclasses.replace(OPTIONS, batch=20)
    assert ungrouped_rows(trees, 32, MANY, gpu) == 32, "20 rows are verified"

    def scratch(mlp: Mlp) -> int:
        model = dataclasses.replace(MODEL, layers=(dataclasses.replace(MODEL.layers[0], mlp=mlp),))
        buffers = stage_buffers(model, None, trees, share=whole_heads(2), mlp_units=mlp.units, group_size=1)
        return next(buffer.nbytes for buffer in buffers if buffer.name == "scratch.mlp")

    rows, inner = forward_rows(trees), GATED.intermediate_size
    for mlp in (MIXTRAL, MANY):
        assert scratch(mlp) >= 4 * rows * mlp.experts_per_token * (2 * 32 + 3 * inner)
        at_once = ungrouped_rows(trees, 32, mlp, gpu)
        assert at_once is not None
        assert scratch(mlp) >= 4 * at_once * mlp.num_experts * 3 * inner


def test_a_verify_of_many_trees_runs_all_experts_once_for_64_rows() -> None:
    gpu = dataclasses.replace(make_device("a"), kind="cuda", compute_capability=86)
    options = dataclasses.replace(OPTIONS, batch=1000, prefill_chunk=1)
    assert ungrouped_rows(dataclasses.replace(options, batch=100), 32, MANY, gpu) == EVERY_EXPERT_ROWS
    assert ungrouped_rows(dataclasses.replace(options, batch=7), 32, MANY, gpu) == 7, "no more than there are"


def test_all_experts_are_priced_with_their_traffic_once_for_every_block_of_rows() -> None:
    parameters = 3 * 192 * MANY.unit
    one, many = unit_work(MANY, 192, 2, 1, 64), unit_work(MANY, 192, 2, 100, 64)
    assert one == Work(traffic_bytes=128 * 2 * parameters, flops=2 * 128 * parameters)
    assert many == Work(traffic_bytes=2 * 128 * 2 * parameters, flops=2 * 100 * 128 * parameters)
    assert unit_work(MANY, 192, 2, 1).traffic_bytes == 8 * 2 * parameters
