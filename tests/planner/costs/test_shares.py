"""Work of shares: the parts of a subgroup add up to the whole, and figures computed by hand."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.costs.roofline import Tier
from planner.costs.shares import DraftShares, kinds_of, sequence_of
from planner.costs.work import Pass, Work, attention_work, exchange_ns, router_work, unit_work
from planner.images import layout
from plans import slot_bytes
from plans.caches import draft_kv_bytes
from plans.kv import KvShare
from plans.schema import KvAxis, Link, Router, Tree
from tests.planner.instances import UNLIKE, demo, formulation

ATTENTION = dataclasses.replace(demo(None)[0].model.layers[0].attention, num_heads=16, num_kv_heads=4, head_dim=32)
PASS = Pass(rows=60, batch=4, kv_rows=1024, inputs=512, hidden=512, width=2)


def share(heads: int, axis: KvAxis = "heads", parts: int = 1, part: int = 0) -> KvShare:
    return KvShare(heads=heads, axis=axis, parts=parts, part=part)


def test_a_share_by_hand() -> None:
    work = attention_work(ATTENTION, PASS, share(2), 1000)
    parameters = (8 + 2 * 2) * 32 * 512 + 512 * 8 * 32  # qkv of 8 query and 2 KV heads, o
    assert work.traffic_bytes == 2 * parameters + 1000
    assert work.flops == 2 * 60 * parameters + 2 * (2 * 60 * 1024 * 8 * 32)  # scores and their sums


@given(st.integers(1, 4), st.integers(2, 8), st.sampled_from(["heads", "context", "head_dim", "batch"]))
def test_parts_add_up(heads: int, parts: int, axis: KvAxis) -> None:
    if axis in ("heads", "head_dim"):
        parts = 2 ** (parts // 3)
    whole = attention_work(ATTENTION, PASS, share(heads), 0)
    members = [attention_work(ATTENTION, PASS, share(heads, axis, parts, i), 0) for i in range(parts)]
    qkv = (4 * heads + 2 * heads) * 32 * 512 * 2
    out = whole.traffic_bytes - qkv
    total = sum(work.traffic_bytes for work in members)
    assert (
        total
        == {
            "heads": qkv + out + (parts - 1) * 2 * heads * 32 * 512 * 2,  # every member reads k and v
            "context": parts * qkv + out,
            "head_dim": qkv + out,
            "batch": parts * (qkv + out),
        }[axis]
    )
    assert sum(work.flops for work in members) >= whole.flops
    if axis == "head_dim":
        assert sum(work.flops for work in members) == whole.flops


def test_exchange_time_of_a_subgroup_by_hand() -> None:
    link = Link(link_class="x", latency_ns=1000, bandwidth_bytes_per_s=10**9)
    tiers = (Tier(count=2, link=link),)

    def ns(share: KvShare) -> int:
        return exchange_ns(ATTENTION, dataclasses.replace(PASS, kv_rows=600), share, lambda nbytes: tiers)

    assert ns(share(4)) == ns(share(4, "batch", 2)) == ns(share(4, "heads", 2)) == ns(share(4, "context", 1)) == 0
    assert ns(share(2, "context", 2)) == 1000 + 4 * 60 * 8 * 33
    columns = 2 * (2000 + 4 * 60 * 8 * 256) + 2000 + 4 * 60 * 8 * 88  # 600 cache rows in chunks of 256
    reductions = 2 * math.ceil(4 * 60 * 8 * 256 / 180) + math.ceil(4 * 60 * 8 * 88 / 180)  # at 180 GB/s
    assert ns(share(2, "head_dim", 2)) == columns + reductions


def test_a_batch_is_divided_in_whole_sequences() -> None:
    three = attention_work(ATTENTION, PASS, share(4, "batch", 3, 0), 0)
    two = attention_work(ATTENTION, PASS, share(4, "batch", 2, 0), 0)
    assert three == two, "2 of 4 sequences either way"


def test_layers_of_several_kinds() -> None:
    base, _ = demo(None)
    (layers,) = base.model.layers
    wide = dataclasses.replace(layers, num_layers=2, mlp=dataclasses.replace(layers.mlp, intermediate_size=1024))
    model = dataclasses.replace(base.model, layers=(wide, layers, wide, dataclasses.replace(wide, num_layers=3)))
    assert [kind.mlp.intermediate_size for kind in kinds_of(model)] == [1024, layers.mlp.intermediate_size]
    assert sequence_of(model) == ((0, 2), (1, layers.num_layers), (0, 5))


@pytest.mark.parametrize("head", ["eagle3", "eagle1"])
def test_the_drafter_reads_its_weights_in_each_pass(head: Any) -> None:
    formulated = formulation(UNLIKE, head)
    draft, options = formulated.draft, formulated.options
    assert draft is not None
    assert options.tree is not None
    shares = DraftShares(model=formulated.model, draft=draft, options=options)
    assert [(one_pass.rows, times) for one_pass, times in shares.passes] == [
        (options.tree.depth + 2, 1),
        (options.tree.top_k, options.tree.depth),
    ]
    assert shares.read_rows == (1, options.tree.top_k)
    heads = share(draft.attention.num_kv_heads)
    norms = {"eagle3": 2, "eagle1": 0}[head] * draft.num_layers * layout.align(4 * draft.hidden_size)
    weights = slot_bytes.draft_attention_bytes(draft, options.dtype, heads, False) - norms
    fc = draft.hidden_size * (3 * formulated.model.hidden_size if head == "eagle3" else 2 * draft.hidden_size)
    assert shares.attention(0, heads).traffic_bytes == weights + draft_kv_bytes(options, draft, heads) + 4 * fc
    again = shares.attention(1, heads).traffic_bytes
    assert again == shares.attention(0, heads).traffic_bytes - (4 * fc if head == "eagle3" else 0)


def test_a_unit_has_a_slice_of_gate_up_and_down() -> None:
    (layers,) = demo(None)[0].model.layers
    work = unit_work(layers.mlp, 192, 4, 10)
    assert work.traffic_bytes == 3 * 192 * layers.mlp.unit * 4
    assert work.flops == 2 * 10 * 3 * 192 * layers.mlp.unit


def test_experts_are_read_if_a_row_selects_them() -> None:
    (layers,) = demo(None)[0].model.layers
    moe = dataclasses.replace(layers.mlp, kind="moe", num_experts=8, experts_per_token=2)
    parameters = 3 * 192 * moe.unit
    assert unit_work(moe, 192, 4, 1) == Work(traffic_bytes=2 * 4 * parameters, flops=2 * 2 * parameters)
    many = unit_work(moe, 192, 4, 60)
    assert many.flops == 60 * 2 * 2 * parameters
    assert 7.9 * 4 * parameters < many.traffic_bytes <= 8 * 4 * parameters
    assert router_work(moe, 192, 4, 60) == Work(traffic_bytes=4 * 8 * 192, flops=2 * 60 * 8 * 192)
    assert router_work(layers.mlp, 192, 4, 60) == Work(traffic_bytes=0, flops=0)
    router = Router(scores="sigmoid", bias=False, float32=True, correction=True, groups=1, picked_groups=1, scale=1.0)
    wide = router_work(dataclasses.replace(moe, router=router), 192, 2, 60)
    assert wide == Work(traffic_bytes=4 * 8 * 192, flops=2 * 60 * 8 * 192), "weights of the router are in float32"


def test_drafting_at_once_is_one_pass_over_the_accepted_rows_and_the_masks() -> None:
    base, head = demo("eagle3")
    assert head is not None
    tree = Tree(kind="dynamic", total_token=8, depth=6, top_k=1, paths=None)
    options = dataclasses.replace(formulation(UNLIKE, "eagle3").options, tree=tree, batch=2)
    one_by_one = DraftShares(model=base.model, draft=head.draft, options=options)
    at_once = dataclasses.replace(one_by_one, draft=dataclasses.replace(head.draft, mask_token_id=5))
    assert [(forward.rows, times) for forward, times in one_by_one.passes] == [(2 * 8, 1), (2 * 1, 6)]
    assert [(forward.rows, times) for forward, times in at_once.passes] == [(2 * (8 + 6), 1)]
    assert (one_by_one.read_rows, at_once.read_rows) == ((2, 2), (2 * 7,))


def test_layers_behind_the_first_of_an_eagle3_head_are_half_as_wide() -> None:
    base, head = demo("eagle3")
    assert head is not None
    options, width = formulation(UNLIKE, "eagle3").options, 4
    one = DraftShares(model=base.model, draft=head.draft, options=options)
    two = dataclasses.replace(one, draft=dataclasses.replace(head.draft, num_layers=2))
    heads, hidden = share(head.draft.attention.num_kv_heads), head.draft.hidden_size
    more = two.attention(0, heads).traffic_bytes - one.attention(0, heads).traffic_bytes
    columns = (head.draft.attention.num_heads + 2 * heads.heads) * head.draft.attention.head_dim
    out = head.draft.attention.num_heads * head.draft.attention.head_dim
    assert more == width * (columns * hidden + out * hidden) + draft_kv_bytes(options, head.draft, heads)
