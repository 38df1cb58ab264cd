"""The buffer table: linear and monotone as the solver assumes, and complete for each device."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plans.buffer import TERMS, Buffer
from plans.buffers import OUTBOX, device_buffers, device_terms, draft_buffers, lm_head_buffers, stage_buffers
from plans.caches import draft_kv_bytes, kv_bytes
from plans.dtypes import cached_width
from plans.kv import KvShare, whole_heads
from plans.schema import KvAxis, Model, Plan, Run, Tree
from plans.step import (
    SCORE_COLUMNS,
    accept_rows,
    draft_kv_rows,
    draft_rows,
    draft_tree_rows,
    forward_rows,
    kv_rows,
    message_words,
    tree_rows,
    verify_rows,
)
from tests.plan_factory import TREE, Group, group, make_draft, make_model, make_plan, shared_draft, split_draft

MODEL = make_model(num_layers=8, num_heads=8, num_kv_heads=4)
DRAFT = make_draft(MODEL)


def plan_with(tree: Tree = TREE, context: int = 64) -> Plan:
    return make_plan(MODEL, [group(MODEL, ["a"], 8)], draft=DRAFT, tree=tree, context=context)


def bytes_of(buffers: tuple[Buffer, ...]) -> int:
    return sum(buffer.nbytes for buffer in buffers)


@given(st.integers(1, 500), st.integers(2, 70), st.integers(1, 9), st.integers(1, 10), st.integers(1, 8))
def test_kv_is_linear_in_heads_and_has_room_for_context_and_tree(
    context: int, total_token: int, depth: int, top_k: int, heads: int
) -> None:
    tree = Tree(kind="dynamic", total_token=total_token, depth=depth, top_k=top_k, paths=None)
    options = dataclasses.replace(plan_with().options, tree=tree, context=context)
    attention = MODEL.layers[0].attention
    one = kv_bytes(options, attention, whole_heads(1))
    assert one == 2 * kv_rows(options) * attention.head_dim * 4
    assert kv_bytes(options, attention, whole_heads(heads)) == heads * one
    assert draft_kv_bytes(options, DRAFT, whole_heads(heads)) == heads * draft_kv_bytes(options, DRAFT, whole_heads(1))
    assert kv_rows(options) >= context + total_token
    assert draft_kv_rows(DRAFT, options) >= context + depth * top_k
    assert one % 256 == 0


AXES: tuple[KvAxis, ...] = ("heads", "context", "head_dim", "batch")


@given(
    st.integers(1, 4), st.integers(0, 8), st.integers(0, 50), st.integers(1, 4), st.sampled_from(AXES), st.booleans()
)
def test_no_buffer_shrinks_when_a_share_grows(
    heads: int, units: int, rows: int, size: int, axis: KvAxis, gpu: bool
) -> None:
    options = plan_with().options

    def total_bytes(heads: int, units: int, rows: int) -> int:
        share = KvShare(heads=heads, axis=axis, parts=2, part=0)
        stage = stage_buffers(MODEL, DRAFT, options, share=share, mlp_units=units, group_size=size, gpu=gpu)
        head = lm_head_buffers(MODEL, DRAFT, options, rows=rows, group_size=size, receives=True, leads=True, gpu=gpu)
        draft = draft_buffers(
            MODEL, DRAFT, options, share=share, mlp_units=units, head_rows=rows, group_size=size, gpu=gpu
        )
        return bytes_of((*stage, *head, *draft))

    now = total_bytes(heads, units, rows)
    assert total_bytes(heads + 1, units, rows) >= now
    assert total_bytes(heads, units + 1, rows) >= now
    assert total_bytes(heads, units, rows + 1) >= now


@given(st.integers(1, 5), st.integers(1, 600), st.sampled_from([1, 2, 4]), st.integers(1, 4))
def test_the_parts_of_a_subgroup_hold_the_whole_cache(batch: int, context: int, parts: int, heads: int) -> None:
    options = dataclasses.replace(plan_with().options, batch=batch, context=context, kv_dtype="float8_e4m3fn")
    attention = MODEL.layers[0].attention
    whole = kv_bytes(options, attention, whole_heads(heads))
    width, of_part = (cached_width("float8_e4m3fn", dims) for dims in (attention.head_dim, attention.head_dim // parts))
    assert whole == 2 * batch * kv_rows(options) * heads * width

    def bytes_of_part(axis: KvAxis) -> int:
        return kv_bytes(options, attention, KvShare(heads=heads, axis=axis, parts=parts, part=parts - 1))

    assert bytes_of_part("head_dim") * width == whole * of_part, "a part of a head has a scale of its own"
    assert bytes_of_part("heads") == whole, "each member has a copy"
    tree = tree_rows(options)
    for axis, granule in (("context", (tree + 64) * batch), ("batch", kv_rows(options))):
        spare = parts * bytes_of_part(axis) - whole
        assert 0 <= spare < parts * granule * 2 * heads * width
    draft_part = draft_kv_bytes(options, DRAFT, KvShare(heads=heads, axis="context", parts=parts, part=0))
    draft_width = cached_width("float8_e4m3fn", DRAFT.attention.head_dim)
    spare = parts * draft_part - draft_kv_bytes(options, DRAFT, whole_heads(heads))
    assert 0 <= spare < parts * (draft_tree_rows(DRAFT, options) + 64) * batch * 2 * heads * draft_width


def test_buffers_for_the_exchange_inside_a_subgroup() -> None:
    options = dataclasses.replace(plan_with().options, batch=3, context=4096)
    rows, queries, dim = 3 * TREE.total_token, 2 * 2, MODEL.layers[0].attention.head_dim

    def shapes(axis: KvAxis) -> dict[str, tuple[int, ...]]:
        share = KvShare(heads=2, axis=axis, parts=2, part=1)
        buffers = stage_buffers(MODEL, DRAFT, options, share=share, mlp_units=1, group_size=4, gpu=False)
        return {buffer.name: buffer.shape for buffer in buffers}

    assert forward_rows(options) == rows
    repeated, context, head_dim, batch = map(shapes, AXES)
    share = whole_heads(2)
    buffers = stage_buffers(MODEL, DRAFT, options, share=share, mlp_units=1, group_size=4, gpu=False)
    whole = {buffer.name: buffer.shape for buffer in buffers}
    assert whole["scratch.attention"][1] - repeated["scratch.attention"][1] == 3 * dim * queries // 2
    assert repeated | {"scratch.attention": whole["scratch.attention"]} == whole
    assert context["partial"] == (3, rows, queries, dim + 1)
    assert context["bias"] == (rows, 2112), "12 rows of the tree and half of 4096, rounded up to 64"
    assert head_dim["scores"] == context["scores"] == (rows, queries, SCORE_COLUMNS)
    assert head_dim["rotary"][2] == dim // 2
    assert not {"partial", "scores"} & (whole.keys() | batch.keys())
    assert head_dim.keys() - whole.keys() == {"scores", "scratch.scores", "scratch.columns"}
    assert context.keys() - head_dim.keys() == {"partial", "scratch.merged"}


def test_a_drafter_with_divided_kv_heads_has_its_own_buffers() -> None:
    placement = shared_draft(MODEL, DRAFT, ("a", "b"), "context", (2,), (DRAFT.attention.num_kv_heads,))
    run = Run(num_layers=8, kv_heads=(4, 4), mlp_units=(4, 4))
    sharing = Group(devices=("a", "b"), runs=(run,), axis="context", subgroups=(2,))
    plan = make_plan(MODEL, [sharing], draft=DRAFT, placement=placement, context=1000)
    shapes = {buffer.name: buffer.shape for buffer in device_buffers(plan, "b")}
    assert len(shapes) == len(device_buffers(plan, "b"))
    rows, heads, dim = draft_rows(DRAFT, plan.options), DRAFT.attention.num_heads, DRAFT.attention.head_dim
    kept = -(-(draft_tree_rows(DRAFT, plan.options) + 500) // 64) * 64
    assert shapes["draft.kv"] == (1, 1, kept, 2 * DRAFT.attention.num_kv_heads, dim)
    assert shapes["draft.partial"] == (3, rows, heads, dim + 1)
    assert shapes["draft.beam"][1] == shapes["draft.bias"][1] == kept
    assert {"scores", "partial", "draft.scores"} <= shapes.keys()


def test_a_device_without_layers_has_the_buffers_of_its_table() -> None:
    groups = [group(MODEL, ["a"], 4), group(MODEL, ["b"], 4)]
    placement = split_draft(MODEL, DRAFT, ("b",))
    plan = make_plan(MODEL, groups, draft=DRAFT, embed=["e"], head=["h", "b"], placement=placement)
    names = {device: {buffer.name for buffer in device_buffers(plan, device)} for device in "abeh"}
    shared = {"chunk", "message", "scratch.index", OUTBOX}
    assert names["e"] == {*shared, "embed.hidden", "embed.scratch.rows", "embed.scratch.reduce"}
    received = {*shared, "head.carry"}
    assert names["h"] == {*received, "scratch.head", "scratch.noise", "scratch.normed", "scratch.best", "features"}
    assert names["h"] - names["b"] == {"head.carry"}, "b leads the last stage, so it sends the carry"
    assert not any(name.startswith(("embed.", "head.")) for name in names["a"])
    shared = make_plan(MODEL, groups, draft=DRAFT)
    assert not any(name.startswith(("embed.", "head.")) for name in shared_names(shared))


def test_a_gpu_has_logits_once_and_draws_without_noise() -> None:
    options = plan_with().options
    both = [
        lm_head_buffers(MODEL, DRAFT, options, rows=9, group_size=1, receives=True, leads=True, gpu=gpu)
        for gpu in (True, False)
    ]
    on_gpu, on_cpu = ({buffer.name: math.prod(buffer.shape) for buffer in buffers} for buffers in both)
    assert on_cpu.keys() - on_gpu.keys() == {"scratch.noise"}
    assert 2 * on_gpu["scratch.head"] == on_cpu["scratch.head"] == 2 * 9 * verify_rows(options)


def shared_names(plan: Plan) -> set[str]:
    return {buffer.name for device in plan.devices for buffer in device_buffers(plan, device.id)}


def test_scratch_of_experts_counts_each_selected_expert_and_the_router() -> None:
    options = plan_with().options
    (dense,) = MODEL.layers
    moe = dataclasses.replace(dense.mlp, kind="moe", num_experts=8, experts_per_token=3, norm_topk_prob=True)
    experts = dataclasses.replace(MODEL, layers=(dataclasses.replace(dense, mlp=moe),))
    half = dataclasses.replace(dense, num_layers=4)
    mixed = dataclasses.replace(MODEL, layers=(half, dataclasses.replace(half, mlp=moe)))

    def buffers_of(model: Model, units: int) -> dict[str, int]:
        buffers = stage_buffers(model, None, options, share=whole_heads(2), mlp_units=units, group_size=2, gpu=False)
        return {buffer.name: buffer.nbytes for buffer in buffers}

    rows, hidden, inner = forward_rows(options), MODEL.hidden_size, dense.mlp.intermediate_size
    units = inner // dense.mlp.unit
    assert buffers_of(MODEL, units)["scratch.router"] == 0
    assert buffers_of(experts, units)["scratch.router"] >= 2 * rows * 8 * 4
    assert buffers_of(experts, units)["scratch.mlp"] >= rows * 3 * (2 * hidden + 3 * inner) * 4
    assert buffers_of(mixed, units) == buffers_of(experts, units)
    assert all(
        buffers_of(mixed, n)[name] <= buffers_of(mixed, n + 1)[name]
        for n in range(units)
        for name in buffers_of(mixed, n)
    )


def test_norms_of_q_and_k_need_a_second_copy_of_both() -> None:
    options = plan_with().options
    (layers,) = MODEL.layers
    attention = dataclasses.replace(layers.attention, qk_norm=True)
    normed = dataclasses.replace(MODEL, layers=(dataclasses.replace(layers, attention=attention),))
    share = whole_heads(2)
    buffers = [
        stage_buffers(m, None, options, share=share, mlp_units=1, group_size=1, gpu=False) for m in (MODEL, normed)
    ]
    plain, more = map(bytes_of, buffers)
    assert more - plain >= forward_rows(options) * (4 + 2) * attention.head_dim * 4


def test_at_most_as_many_nodes_are_accepted_as_the_tree_has() -> None:
    options = plan_with(Tree(kind="dynamic", total_token=2, depth=7, top_k=4, paths=None)).options
    assert (accept_rows(options), tree_rows(options), message_words(options)) == (2, 2, 1 + 2 + 4)
    plain = dataclasses.replace(options, tree=None)
    assert (accept_rows(plain), tree_rows(plain), message_words(plain)) == (1, 1, 4)


def test_a_device_has_the_buffers_of_its_parts() -> None:
    plan = make_plan(
        MODEL,
        [group(MODEL, ["a"], 5), Group(devices=("c", "b"), runs=group(MODEL, ["c", "b"], 3).runs)],
        draft=DRAFT,
        placement=split_draft(MODEL, DRAFT, ("d", "b")),
    )
    names = {device: {buffer.name for buffer in device_buffers(plan, device)} for device in "abcd"}
    assert "kv.0" in names["a"]
    assert not names["a"] & {"scratch.best", "features", "draft.kv"}
    assert {"kv.5", "scratch.best", "features", "draft.kv"} <= names["b"]
    assert {"kv.5", "scratch.best"} <= names["c"]
    assert {name for name in names["d"] if not name.startswith("draft.")} == {"message", "features", OUTBOX}
    for device in "abcd":
        terms = device_terms(plan, device)
        assert tuple(terms) == TERMS
        assert sum(terms.values()) == bytes_of(device_buffers(plan, device))
    assert len({buffer.name for buffer in device_buffers(plan, "b")}) == len(device_buffers(plan, "b"))


def test_kv_terms_of_a_device_are_the_bytes_of_all_layers() -> None:
    plan = plan_with()
    attention = MODEL.layers[0].attention
    terms = device_terms(plan, "a")
    assert terms["kv"] == 8 * kv_bytes(plan.options, attention, whole_heads(attention.num_kv_heads))
    assert terms["draft_kv"] == draft_kv_bytes(plan.options, DRAFT, whole_heads(DRAFT.attention.num_kv_heads))


@pytest.mark.parametrize("axis", AXES)
def test_a_gpu_has_masks_only_where_devices_add_up_scores(axis: KvAxis) -> None:
    options = dataclasses.replace(plan_with().options, kv_dtype="float8_e4m3fn")
    share = KvShare(heads=2, axis=axis, parts=2, part=0)
    both = []
    for gpu in (True, False):
        stage = stage_buffers(MODEL, DRAFT, options, share=share, mlp_units=1, group_size=2, gpu=gpu)
        draft = draft_buffers(MODEL, DRAFT, options, share=share, mlp_units=1, head_rows=0, group_size=2, gpu=gpu)
        both.append({buffer.name: buffer.nbytes for buffer in (*stage, *draft)})
    on_gpu, on_cpu = both
    assert on_gpu.items() <= on_cpu.items()
    masks = {"bias", "draft.bias", "draft.beam", "scratch.bias"}
    assert masks <= on_cpu.keys()
    assert (on_gpu == on_cpu) if axis == "head_dim" else not (masks | {"scratch.kv", "scores"}) & on_gpu.keys()
