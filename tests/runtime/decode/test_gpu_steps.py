"""Prefill and steps as a GPU runs them, on meta tensors: waits of the host, arguments of attention, and memory."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from planner.costs.fixed_work import CAPTURED, ENGINE_LAYER, LAUNCH_NS
from plans import codec, launches
from plans.kv import KvShare
from plans.schema import GateUpFormats, KvAxis, LayerClass, Model, Plan, QkvFormats, Run, Tree, WeightFormat
from plans.step import fed_rows, layer_class, merges_itself
from runtime.decode.messages import Channel
from runtime.decode.work import Mode
from runtime.model.triton_kernels import launch, rowwise
from runtime.sampling import Sampling
from tests.plan_factory import TREE, Group, even, group, make_draft, make_model, make_plan
from tests.runtime.decode.gpu_plans import MODELS, PLANS, assert_planned, faults, gpu, scratch
from tests.runtime.meta import CUDA, META, AsCuda, Watch
from tests.runtime.meta_steps import Kind, on_meta, stepper_on_meta


def committed() -> list[tuple[str, int]]:
    """Return the ranks of committed plans that are GPUs; of many devices the first and the last."""
    cases = []
    for file in sorted(PLANS.glob("*/plan.yaml")):
        plan = codec.load(file.parent)
        ranks = [rank for rank, device in enumerate(plan.devices) if device.kind == "cuda"]
        cases += [
            (file.parent.name, rank) for rank in dict.fromkeys(ranks if len(ranks) < 4 else (ranks[0], ranks[-1]))
        ]
    return cases


@pytest.mark.parametrize(("name", "rank"), committed())
def test_a_committed_plan_runs_as_a_gpu_wants_it(name: str, rank: int) -> None:
    plan = codec.load(PLANS / name)
    run = on_meta(plan, rank, [plan.options.prefill_chunk + 9])
    assert faults(run) == []
    assert set(run.reads.values()) == {1}, "the step message is all that the host reads in a step"
    assert any(trace.attentions for trace in run.traces), "a rank without layers would prove nothing"
    assert_planned(plan, rank, run)


BUDGETS = {
    "llama8b-1gpu": {
        "plain": {"prefill": 610, "verify": 299, "draft": 3, "commit": 3},
        "EAGLE": {"prefill": 766, "verify": 334, "draft": 129, "commit": 4},
    },
    "mixtral-8x7b-2gpu": {
        "plain": {"prefill": 800, "verify": 395, "draft": 3, "commit": 3},
        "EAGLE": {"prefill": 980, "verify": 430, "draft": 151, "commit": 4},
    },
}
"""Operations and kernels that compute, by phase, on the first rank: as many launches. A prompt of 521 is two chunks."""


FORMATS = {
    "int4": WeightFormat(code="int4", group=32, zeros=True, scale="bfloat16"),
    "int8": WeightFormat(code="int8", group=None, zeros=False, scale="float32"),
    "fp8": WeightFormat(code="float8_e4m3fn", group=None, zeros=False, scale="float32"),
    "mxfp4": WeightFormat(code="float4_e2m1", group=32, zeros=False, scale="float8_e8m0"),
}


WIDE = make_model(
    num_layers=1, num_heads=32, num_kv_heads=8, head_dim=128, hidden_size=4096, intermediate_size=14336, unit=128,
)  # fmt: skip
"""A layer as wide as that of an 8B model: few rows divide the columns of its products with codes."""


def of_form(form: str) -> LayerClass:
    layers, own = WIDE.layers[0], FORMATS[form]
    return dataclasses.replace(
        layers, attention=dataclasses.replace(layers.attention, qkv_format=own, o_format=own),
        mlp=dataclasses.replace(layers.mlp, gate_up_format=own, down_format=own),
    )  # fmt: skip


def with_attention(**changed: Any) -> LayerClass:
    layers = WIDE.layers[0]
    return dataclasses.replace(layers, attention=dataclasses.replace(layers.attention, **changed))


KINDS: dict[str, tuple[dict[str, Any], LayerClass]] = {
    "plain": ({}, WIDE.layers[0]),
    "norms of queries and keys": ({}, with_attention(qk_norm=True)),
    "norms of all heads together, and of outputs": (
        {"norms": "after"}, with_attention(qk_norm=True, qk_norm_whole=True),
    ),
    "norms around, with offsets": ({"norms": "around", "norm_offset": True}, WIDE.layers[0]),
    "a factor of outputs": ({"residual_multiplier": 0.2}, WIDE.layers[0]),
    "biases": (
        {}, dataclasses.replace(
            with_attention(qkv_bias=True, o_bias=True), mlp=dataclasses.replace(WIDE.layers[0].mlp, bias=True)
        ),
    ),
    **{form: ({}, of_form(form)) for form in FORMATS},
}  # fmt: skip
"""Fields of a model and the class of its layers."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_layer_is_nine_launches_and_ten_of_many_rows(kind: str) -> None:
    """Norm, q k v, rotary and write, attention, o; norm, gate and up, activation, down; the merge of many rows.

    A product with codes applies the activation itself.
    """
    fields, layers = KINDS[kind]
    expected = 8 if kind in FORMATS else 9
    assert launches_of(layers, WIDE, **fields) == launches.LAYER - (kind in FORMATS) * launches.ACTIVATION == expected
    assert launches_of(layers, WIDE, tree=16, **fields) == expected + launches.MERGE == expected + 1
    device = dataclasses.replace(gpu("a"), overhead_ns=ENGINE_LAYER)
    assert CAPTURED.layer_ns(device, layers) == expected


def test_formats_of_their_own_are_products_of_their_own() -> None:
    """Three products and a copy for q, k and v; two, a copy and the activation for gate and up."""
    int4, int8 = FORMATS["int4"], dataclasses.replace(FORMATS["int4"], code="int8")
    qkv, both = QkvFormats(q=int4, k=None, v=int8), GateUpFormats(gate=int4, up=int8)
    device = dataclasses.replace(gpu("a"), overhead_ns=ENGINE_LAYER)
    for qkv_formats, gate_up_formats in ((qkv, None), (None, both), (qkv, both)):
        plain = WIDE.layers[0]
        layers = dataclasses.replace(
            plain, attention=dataclasses.replace(plain.attention, qkv_formats=qkv_formats),
            mlp=dataclasses.replace(plain.mlp, gate_up_formats=gate_up_formats),
        )  # fmt: skip
        split = launches.SPLIT_QKV * (qkv_formats is not None), launches.SPLIT_GATE_UP * (gate_up_formats is not None)
        assert launches_of(layers, WIDE) == launches.LAYER + sum(split)
        assert CAPTURED.layer_ns(device, layers) == launches.LAYER + sum(split)


@pytest.mark.parametrize(("form", "experts"), [(None, 16), (None, 64), *((form, 16) for form in FORMATS)])
def test_a_layer_of_experts_is_twelve_launches(form: str | None, experts: int) -> None:
    """Six before the router's product, its choice, the sort by expert, gate and up, down, the sum.

    However many experts there are: none has launches of its own.
    With biases and bounds of gates as in gpt-oss, and weights in codes, they are no more.
    """
    layers = NARROW.layers[0]
    moe = dataclasses.replace(
        layers.mlp, kind="moe", num_experts=experts, experts_per_token=4, norm_topk_prob=True, unit=32
    )
    if form is not None:
        moe = dataclasses.replace(
            moe, gate_up_format=FORMATS[form], down_format=FORMATS[form], bias=True, swiglu_limit=7.0,
            swiglu_alpha=1.702,
        )  # fmt: skip
    expected = launches.LAYER + launches.EXPERTS
    assert launches_of(dataclasses.replace(layers, mlp=moe)) == expected == 12


@pytest.mark.parametrize("kind", ["eagle3", "eagle"])
def test_a_pass_of_the_drafter_has_few_launches(kind: str) -> None:
    """Both inputs behind their norms, a layer of nine besides, fc or the last norm, lm_head, the best of its blocks,
    growth: of 25 at most.
    """
    counts = []
    base = make_model(num_layers=8, num_heads=32, num_kv_heads=8, head_dim=128, hidden_size=256)
    for depth in (3, 4):
        plan = make_plan(
            base, [group(base, ["a"], base.num_layers)], devices=[gpu("a")],
            draft=make_draft(base, kind=kind, num_kv_heads=2), context=4000, dtype="bfloat16",
            tree=dataclasses.replace(TREE, depth=depth),
        )  # fmt: skip
        counts.append(on_meta(plan, 0, [40]).steps["EAGLE"]["draft"].count)
    assert counts[1] - counts[0] == launches.PASS + launches.LAYER + launches.MERGE == 14


@pytest.mark.parametrize("axis", ["heads", "context", "batch", "head_dim"])
def test_a_layer_whose_cache_devices_divide_has_the_launches_that_are_priced(axis: KvAxis) -> None:
    """Where dims of a head are divided, torch attends to each block of rows in turn; of several sequences it copies."""
    counts, share = [], KvShare(heads=8, axis=axis, parts=1 if axis == "heads" else 2, part=1)
    for number in (2, 3):
        base = make_model(num_layers=number, num_heads=32, num_kv_heads=8, head_dim=128, hidden_size=256)
        kv_heads, subgroups = ((4, 4), (1, 1)) if axis == "heads" else ((8, 8), (2,))
        run = Run(num_layers=number, kv_heads=kv_heads, mlp_units=even(base.layers[0].mlp.units, 2))
        devices = [dataclasses.replace(gpu(name), ordinal=ordinal) for ordinal, name in enumerate("ab")]
        plan = make_plan(
            base, [Group(devices=("a", "b"), runs=(run,), axis=axis, subgroups=subgroups)], devices=devices,
            context=1000, dtype="bfloat16", prefill_chunk=64, batch=2 if axis == "batch" else 1,
        )  # fmt: skip
        counts.append(on_meta(plan, 1, [900], cached=840).steps["plain"]["verify"].count)
    device = dataclasses.replace(gpu("a"), overhead_ns=ENGINE_LAYER)
    layer_ns = launches.LAYER + CAPTURED.divided_ns(device, share, plan.options.context)
    kernels = {"heads": 9, "context": 10, "batch": 11, "head_dim": 90}[axis]
    assert counts[1] - counts[0] == kernels
    assert layer_ns == kernels * (LAUNCH_NS if axis == "head_dim" else 1), "steps by head_dim are not captured"


NARROW = make_model(num_layers=1, num_heads=32, num_kv_heads=8, head_dim=128, hidden_size=256)


def launches_of(layers: LayerClass, base: Model = NARROW, tree: int | None = None, **fields: Any) -> int:
    """Return the launches of one layer in a plain step, in which nothing waits and memory is planned.

    ``base``: a model of one layer of these sizes, which has these ``fields``. ``tree``: nodes of a step that verifies.
    """
    counts = []
    kind: Kind = "plain" if tree is None else "EAGLE"
    for number in (2, 3):
        model = dataclasses.replace(base, layers=(dataclasses.replace(layers, num_layers=number),), **fields)
        plan = make_plan(
            model, [group(model, ["a"], number)], devices=[gpu("a")], context=4000, dtype="bfloat16",
            draft=None if tree is None else make_draft(model, kind="eagle"), prefill_chunk=64,
            tree=TREE if tree is None else dataclasses.replace(TREE, total_token=tree),
        )  # fmt: skip
        run = on_meta(plan, 0, [40])
        assert faults(run) == []
        assert 0 < run.peak <= scratch(plan, 0)
        counts.append(run.steps[kind]["verify"].count)
    return counts[1] - counts[0]


@pytest.mark.parametrize("name", BUDGETS)
def test_a_phase_has_its_budget_of_operations(name: str) -> None:
    run = on_meta(codec.load(PLANS / name), 0, [521])
    counts = {
        kind: {"prefill": run.prefill[kind].count, **{phase: trace.count for phase, trace in step.items()}}
        for kind, step in run.steps.items()
    }
    assert counts == BUDGETS[name], "more operations take more time; fewer are a lower budget"


def test_a_draw_is_one_kernel() -> None:
    """With the depths of nodes a sampled verify is two launches more than a greedy one."""
    sampling = Sampling(temperature=0.7, top_k=50, top_p=0.9, seed=1)
    run = on_meta(codec.load(PLANS / "llama8b-1gpu"), 0, [521], sampling=sampling)
    assert faults(run) == []
    greedy = BUDGETS["llama8b-1gpu"]
    assert {kind: step["verify"].count for kind, step in run.steps.items()} == {
        kind: budget["verify"] + 2 for kind, budget in greedy.items()
    }


@pytest.mark.parametrize(("name", "allowed"), [("llama8b-1gpu", 0.0), ("mixtral-8x7b-2gpu", 0.02)])
def test_the_planner_prices_as_many_kernels(name: str, allowed: float) -> None:
    """Exactly for a plan of one GPU; where tables are divided, heads differ in an operation."""
    plan, several = codec.load(PLANS / name), len(codec.load(PLANS / name).devices) > 1
    for kind, drafted in (("plain", False), ("EAGLE", True)):
        counted = sum(BUDGETS[name][kind][phase] for phase in ("verify", "draft", "commit"))
        # a plan with an EAGLE-3 head copies its aux layers' states in a plain step, too
        copies = 0 if drafted or plan.draft is None else len(plan.draft.aux_layers)
        expected = priced(plan, drafted=drafted) + copies + several * launches.DIVIDED_TABLES
        assert expected == pytest.approx(counted, rel=allowed)


def priced(plan: Plan, *, drafted: bool) -> int:
    """Return the kernels that the planner prices a step with, on a GPU on which each takes 1 ns."""
    device = dataclasses.replace(gpu("a"), overhead_ns=ENGINE_LAYER)
    draft, tree = plan.draft, plan.options.tree
    layers = sum(
        CAPTURED.layer_ns(device, layer_class(plan.model, i), merges=drafted) for i in range(plan.model.num_layers)
    )
    base = layers + CAPTURED.embed_ns(device) + CAPTURED.lm_head_ns(device, walks=True) - CAPTURED.between_steps_ns
    if not drafted:
        return base
    assert draft is not None
    assert tree is not None
    merges = not merges_itself(tree.top_k, draft.attention.num_heads // draft.attention.num_kv_heads)
    passes = 1 + sum(rows > 0 for rows in fed_rows(tree))
    return (
        base
        + passes * CAPTURED.pass_ns(device, draft.num_layers, merges=merges, members=len(plan.devices))
        + CAPTURED.draft_step_ns(device)
    )


@pytest.mark.parametrize(
    "tree", [TREE, Tree(kind="static", total_token=4, depth=1, top_k=2, paths=((0,), (1,), (0, 1)))]
)
def test_neither_sampling_nor_a_sequence_that_ends_makes_the_host_wait(tree: Tree) -> None:
    base = MODELS["MHA"]
    plan = make_plan(
        base, [group(base, ["a"], base.num_layers)], draft=make_draft(base, kind="eagle"), devices=[gpu("a")],
        context=500, dtype="bfloat16", batch=2, tree=tree,
    )  # fmt: skip
    run = on_meta(plan, 0, [40, 20], sampling=Sampling(temperature=0.7, top_k=5, top_p=0.9, seed=1), ended=(1,))
    assert faults(run) == []
    assert run.reads == {"plain": 1, "EAGLE": 1}


def test_a_batch_looks_up_its_tokens_in_codes_where_the_message_has_them() -> None:
    """Of a plain step they are a column of the message."""
    base = make_model(num_layers=2, num_heads=32, num_kv_heads=8, head_dim=128, hidden_size=256, tied_head=True)
    base = dataclasses.replace(base, head_format=dataclasses.replace(FORMATS["int8"], scale="bfloat16"))
    plan = make_plan(
        base, [group(base, ["a"], base.num_layers)], draft=make_draft(base, kind="eagle"), devices=[gpu("a")],
        context=500, dtype="bfloat16", batch=4,
    )  # fmt: skip
    run = on_meta(plan, 0, [40, 7, 100, 23])
    assert faults(run) == []
    assert all(step["verify"].kernels["look_up_kernel"] == 1 for step in run.steps.values())
    assert_planned(plan, 0, run)


@pytest.mark.parametrize("draft", [False, True])
def test_sequences_that_join_and_leave_make_the_host_wait_once_a_step(*, draft: bool) -> None:
    """While some are prefilled others decode; where a place between two becomes free, places are exchanged."""
    base, chance = MODELS["MHA"], random.Random(1)
    plan = make_plan(
        base, [group(base, ["a"], base.num_layers)], draft=make_draft(base, kind="eagle"), devices=[gpu("a")],
        context=500, dtype="bfloat16", prefill_chunk=64, batch=4,
    )  # fmt: skip
    exchanged, sampled = [], Sampling(temperature=0.7, top_k=5, top_p=0.9, seed=1)
    exchange = Channel.exchange

    def noted(channel: Channel, a: int, b: int) -> None:
        exchanged.append(max(a, b) < len(channel.wire))
        exchange(channel, a, b)

    with stepper_on_meta(plan, 0, 2) as watched, mock.patch.object(Channel, "exchange", noted):
        stepper, prefilled, running = watched.stepper, set[int](), set[int]()
        stepper.enter(Mode(draft=draft, accept=None))
        watched.watch.forget()
        for step in range(1, 17):
            free = [number for number in range(4) if number not in prefilled | running]
            if free and chance.random() < 0.8:
                prompt, sampling = tuple(range(chance.randrange(1, 200))), sampled if step % 2 else None
                prefilled.add(stepper.begin(prompt, sampling, free, reuse=True)[0])
            joined = {number for number in sorted(prefilled) if stepper.prefill(number)}
            prefilled, running = prefilled - joined, running | joined
            stepper.step()
            assert watched.waits == [step]
            for number in [number for number in sorted(running) if chance.random() < 0.2]:
                stepper.end(number)
                running.remove(number)
        traces = watched.watch.traces.values()
        assert [fault for trace in traces for fault in (*trace.mixed, *trace.waits)] == []
        assert 0 < watched.watch.most <= scratch(plan, 0)
    assert any(exchanged), "places of the message were to be exchanged"


def test_staged_collectives_make_the_host_wait_only_for_what_they_read() -> None:
    """Their copies to the host, and back, are in the queue of the device."""
    run = on_meta(codec.load(PLANS / "mixtral-8x7b-2gpu"), 0, [40], staged=True)
    assert faults(run) == []
    assert all(count > 1 for count in run.reads.values())


WAITS: list[Callable[[Tensor, Tensor], object]] = [
    lambda rows, mask: rows.__setitem__(mask, rows[:1]),
    lambda rows, mask: rows.index_put_((mask,), rows[:1], accumulate=True),
    lambda rows, mask: torch.index_put(rows, (mask,), rows[:1]),
    lambda rows, mask: rows[[0, 1]],
    lambda rows, mask: rows[:, range(2)],
    lambda rows, mask: rows.__setitem__([0, 1], 0),
    lambda rows, mask: rows.new([1, 2]),
    lambda rows, mask: torch.linalg.inv(rows),
    lambda rows, mask: torch.linalg.cholesky(rows),
    lambda rows, mask: rows.copy_(torch.ones(4, 4), non_blocking=True),
    lambda rows, mask: torch.zeros(1).to(META, non_blocking=True),
    lambda rows, mask: torch.zeros(4, 4).copy_(rows),
    lambda rows, mask: torch.zeros(4, 4).copy_(rows, non_blocking=True),
    lambda rows, mask: torch.cuda.is_available() and torch.cuda.synchronize(rows.device),
]
"""Calls for which the host waits on a GPU, and which look as if it did not."""


def test_the_watch_sees_what_it_is_there_for() -> None:
    watch, rows = Watch(), torch.empty(4, 8, device=META)
    with AsCuda(watch), watch, torch.inference_mode():
        rows.copy_(torch.ones(4, 8, pin_memory=False), non_blocking=True)  # that is asked for where there is a GPU
        assert not watch.trace.waits
        rows.copy_(torch.ones(4, 8))
        torch.tensor([1.0, 2.0], device=META)
        rows.new_tensor([1.0])
        torch.where(rows > 0, rows, torch.tensor(1.0))
        assert rows.is_cuda
        assert rows.new_empty(1).device == torch.empty(1, device=rows.device).device == CUDA
        assert not torch.empty(1).is_cuda
    trace = watch.trace
    assert len(trace.waits) == 3
    assert [name.partition(" ")[0] for name in trace.mixed] == ["where.self"]
    watch.trace.mixed.clear()
    watch.trace.waits.clear()
    for wait in WAITS:
        with AsCuda(watch), watch, torch.inference_mode():
            wait(torch.empty(4, 4, device=META), torch.empty(4, dtype=torch.bool, device=META))
        assert len(watch.trace.waits) == 1, f"the call {WAITS.index(wait)}"
        watch.trace.waits.clear()
    with mock.patch.object(launch, "start", watch.start):
        rowwise.norm(rows, torch.empty(8, device=META), 1e-5)
        assert not watch.trace.mixed
        rowwise.norm(rows, torch.empty(8), 1e-5)
    assert watch.trace.mixed == ["norm_kernel on ['cpu', 'meta']"]
    assert watch.trace.kernels["norm_kernel"] == 2
