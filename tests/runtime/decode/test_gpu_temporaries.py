"""Temporaries of prefill and steps on a GPU: within what is planned, at every context, batch and division."""

import dataclasses

import pytest

from plans.buffers import device_buffers
from plans.schema import Device, DType, KvAxis, KvDType, Run
from plans.step import CONVERTED_ROWS
from tests.plan_factory import Group, even, group, make_device, make_draft, make_plan
from tests.runtime.decode.gpu_plans import MODELS, assert_planned, faults, gpu
from tests.runtime.meta_steps import on_meta


@pytest.mark.parametrize("context", [1 << 10, 1 << 13, 1 << 16])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("dtype", "kv_dtype"), [("bfloat16", "bfloat16"), ("float16", "float8_e4m3fn")])
def test_temporaries_are_planned_at_every_context(model: str, context: int, dtype: DType, kv_dtype: KvDType) -> None:
    base = MODELS[model]
    plan = make_plan(
        base, [group(base, ["a"], base.num_layers)], draft=make_draft(base, kind="eagle"), devices=[gpu("a")],
        context=context, dtype=dtype, kv_dtype=kv_dtype, prefill_chunk=512,
    )  # fmt: skip
    run = on_meta(plan, 0, [context - 20], cached=context - 600)
    assert faults(run) == []
    assert max(rows for trace in run.traces for _, rows, _ in trace.attentions) >= context
    assert max(splits for trace in run.traces for *_, splits in trace.attentions) in (5, 16)
    assert_planned(plan, 0, run)


@pytest.mark.parametrize("batch", [2, 3, 5])
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [("bfloat16", "bfloat16"), ("float32", "float8_e4m3fn"), ("bfloat16", "int8")]
)
def test_temporaries_of_a_batch_are_planned(batch: int, dtype: DType, kv_dtype: KvDType) -> None:
    base = MODELS["GQA"]
    plan = make_plan(
        base, [group(base, ["a"], base.num_layers)], draft=make_draft(base, kind="eagle", num_kv_heads=16),
        devices=[gpu("a")], context=9000, dtype=dtype, kv_dtype=kv_dtype, prefill_chunk=128, batch=batch,
    )  # fmt: skip
    run = on_meta(plan, 0, [8000, *range(20, 18 + batch)], cached=7800)
    assert faults(run) == []
    assert_planned(plan, 0, run)


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float8_e4m3fn", "int8"])
@pytest.mark.parametrize("axis", ["heads", "context", "head_dim", "batch"])
def test_temporaries_of_devices_that_divide_kv_heads_are_planned(axis: KvAxis, kv_dtype: KvDType) -> None:
    base, names = MODELS["one KV head of 256"], ("a", "b")
    units = base.layers[0].mlp.units
    run = Run(num_layers=base.num_layers, kv_heads=(1, 1), mlp_units=even(units, 2))
    plan = make_plan(
        base, [Group(devices=names, runs=(run,), axis=axis, subgroups=(2,))], draft=make_draft(base, kind="eagle"),
        context=9000,
        devices=[dataclasses.replace(gpu(name), ordinal=number) for number, name in enumerate(names)],
        dtype="bfloat16", kv_dtype=kv_dtype, prefill_chunk=256, batch=2,
    )  # fmt: skip
    for rank in range(2):
        result = on_meta(plan, rank, [6000, 100], cached=5700)
        assert faults(result) == []
        assert_planned(plan, rank, result)


def test_a_converted_cache_takes_memory_for_a_block_of_rows_on_a_cpu_alone() -> None:
    base = MODELS["GQA"]

    def of(device: Device, context: int, kv_dtype: KvDType = "float16") -> list[int]:
        plan = make_plan(base, [group(base, ["a"], base.num_layers)], devices=[device], context=context,
                         dtype="bfloat16", kv_dtype=kv_dtype)  # fmt: skip
        return [buffer.nbytes for buffer in device_buffers(plan, "a") if buffer.name == "scratch.kv"]

    cpu = make_device("a", memory_bytes=1 << 37)
    assert of(cpu, 1 << 14) == of(cpu, 1 << 17) == [CONVERTED_ROWS * 2 * 8 * 128 * 2]
    assert of(gpu("a"), 1 << 14) == []
    assert of(cpu, 1 << 14, "float8_e4m3fn") == of(cpu, 1 << 14, "int8") == [], "kernels convert them in registers"
